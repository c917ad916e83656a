{{/* Keys that had, or might be thought to have, other names; the schema lets them pass, so that this can say what to do. */}}
{{- define "stillhouse.renamed" -}}
servingNamespace: Write it as serving.namespace.
schedules: Write them as publish.schedules.
trackingUri: Write it as mlflow.trackingUri.
replicaCount: Write it as mlflow.replicas.
mlflow.replicaCount: Write it as mlflow.replicas.
mlflow.backendStore: Write it as mlflow.database, with user and password in a secret.
mlflow.backendStoreUri: Write it as mlflow.database, with user and password in a secret.
mlflow.artifactRoot: Write it as mlflow.artifacts.
mlflow.database.user: Put it into the secret that mlflow.database.existingSecret names.
mlflow.database.password: Put it into the secret that mlflow.database.existingSecret names. Values are no place for passwords.
publish.cluster: 'Write it as publish.pipelines: [{cluster: NAME}].'
kubeflow.namespace: Install the chart in that namespace, helm install --namespace.
{{- end }}

{{/* Everything in the values that contradicts itself, or is asked for without what it needs; then nothing is rendered. */}}
{{- define "stillhouse.checks" -}}
{{- $wrong := list -}}
{{- range $path, $advice := include "stillhouse.renamed" . | fromYaml -}}
{{- $node := $.Values -}}
{{- $there := true -}}
{{- range splitList "." $path -}}
{{- if and $there (kindIs "map" $node) (hasKey $node .) -}}
{{- $node = get $node . -}}
{{- else -}}
{{- $there = false -}}
{{- end -}}
{{- end -}}
{{- if $there }}{{ $wrong = append $wrong (printf "%s: is not a key of this chart. %s" $path $advice) }}{{ end -}}
{{- end -}}
{{- if eq .Values.serving.namespace .Release.Namespace -}}
{{- $wrong = append $wrong (printf "serving.namespace: %s is the release's own namespace. Serve in another one, so that what deploys can reach nothing of the pipelines." .Values.serving.namespace) -}}
{{- end -}}
{{- if and .Values.deployer.additionalSubjects (not .Values.deployer.enabled) -}}
{{- $wrong = append $wrong "deployer.additionalSubjects: have no effect, since deployer.enabled is false." -}}
{{- end -}}
{{- with .Values.mlflow -}}
{{- if .enabled -}}
{{- if .trackingUri }}{{ $wrong = append $wrong "mlflow.trackingUri: names a server, but mlflow.enabled runs one here. Leave out one or the other." }}{{ end -}}
{{- if not .database.host }}{{ $wrong = append $wrong "mlflow.database.host: is not given. Name a PostgreSQL server, or set mlflow.enabled to false and mlflow.trackingUri." }}{{ end -}}
{{- if not .artifacts.destination -}}
{{- $wrong = append $wrong "mlflow.artifacts.destination: is not given. Write s3://BUCKET/PATH, gs://BUCKET/PATH, or a path on mlflow.artifacts.claim." -}}
{{- else if and (hasPrefix "/" .artifacts.destination) (not .artifacts.claim) -}}
{{- $wrong = append $wrong (printf "mlflow.artifacts.claim: is not given, and artifacts in %s would be lost with the pod. Name a PersistentVolumeClaim." .artifacts.destination) -}}
{{- else if and .artifacts.claim (not (hasPrefix "/" .artifacts.destination)) -}}
{{- $wrong = append $wrong (printf "mlflow.artifacts.claim: has no effect, since mlflow.artifacts.destination is %s." .artifacts.destination) -}}
{{- end -}}
{{- if and (hasPrefix "verify-" .database.sslMode) (not .database.caSecret) -}}
{{- $wrong = append $wrong (printf "mlflow.database.caSecret: is not given, and sslMode %s needs it." .database.sslMode) -}}
{{- end -}}
{{- if and .database.caSecret (not (hasPrefix "verify-" .database.sslMode)) -}}
{{- $wrong = append $wrong (printf "mlflow.database.sslMode: %s checks no certificate, so mlflow.database.caSecret has no effect. Write verify-full." .database.sslMode) -}}
{{- end -}}
{{- else if and .trackingUri (contains "@" .trackingUri) -}}
{{- $wrong = append $wrong "mlflow.trackingUri: holds a user's name or password. Set mlflow.secret.create to false, and put them into a secret of your own." -}}
{{- end -}}
{{- if and .trackingUri (not .secret.create) -}}
{{- $wrong = append $wrong "mlflow.trackingUri: has no effect, since mlflow.secret.create is false: your own secret names the server." -}}
{{- end -}}
{{- end -}}
{{- with .Values.publish -}}
{{- $files := .clusterFiles -}}
{{- if not .enabled -}}
{{- if .schedules }}{{ $wrong = append $wrong "publish.schedules: have no effect, since publish.enabled is false." }}{{ end -}}
{{- else if not (or .pipelines .schedules) -}}
{{- $wrong = append $wrong "publish.pipelines: lists nothing, and neither does publish.schedules. Set publish.enabled to false." -}}
{{- end -}}
{{- range $name, $_ := $files -}}
{{- if has $name (list "gpu" "cpu") }}{{ $wrong = append $wrong (printf "publish.clusterFiles.%s: is the name of a cluster that comes with the release. Choose another." $name) }}{{ end -}}
{{- end -}}
{{- $known := concat (list "gpu" "cpu") (keys $files | sortAlpha) -}}
{{- range $index, $entry := .pipelines -}}
{{- if not (has .cluster $known) }}{{ $wrong = append $wrong (printf "publish.pipelines[%d].cluster: there is no cluster %q. There are: %s; or add it to publish.clusterFiles." $index .cluster (join ", " $known)) }}{{ end -}}
{{- end -}}
{{- $names := list -}}
{{- range $index, $entry := .schedules -}}
{{- $where := printf "publish.schedules[%d]" $index -}}
{{- if has .name $names }}{{ $wrong = append $wrong (printf "%s.name: %q is given to another schedule, too." $where .name) }}{{ end -}}
{{- $names = append $names .name -}}
{{- if not (has .cluster $known) }}{{ $wrong = append $wrong (printf "%s.cluster: there is no cluster %q. There are: %s; or add it to publish.clusterFiles." $where .cluster (join ", " $known)) }}{{ end -}}
{{- if and .cron .every }}{{ $wrong = append $wrong (printf "%s.every: stands beside cron. Give one of them." $where) }}{{ end -}}
{{- if not (or .cron .every) }}{{ $wrong = append $wrong (printf "%s.cron: is not given, and neither is every. Give one of them." $where) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if $wrong }}{{ fail (printf "\n\n%s\n" (join "\n" $wrong)) }}{{ end -}}
{{- end }}
