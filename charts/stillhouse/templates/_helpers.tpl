{{- define "stillhouse.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "stillhouse.mlflow.fullname" -}}
{{ include "stillhouse.fullname" . }}-mlflow
{{- end }}

{{- define "stillhouse.deployer.fullname" -}}
{{ include "stillhouse.fullname" . }}-deployer
{{- end }}

{{- define "stillhouse.publish.fullname" -}}
{{ include "stillhouse.fullname" . }}-publish
{{- end }}

{{/* Labels of an object: (list context component). */}}
{{- define "stillhouse.labels" -}}
{{- $context := index . 0 -}}
{{- with $context.Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
helm.sh/chart: {{ printf "%s-%s" $context.Chart.Name $context.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ $context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $context.Release.Service }}
app.kubernetes.io/part-of: stillhouse
{{ include "stillhouse.selector" . }}
{{- end }}

{{/* Labels that pods are selected by: (list context component). */}}
{{- define "stillhouse.selector" -}}
{{- $context := index . 0 -}}
app.kubernetes.io/name: {{ $context.Chart.Name }}
app.kubernetes.io/instance: {{ $context.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "stillhouse.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The service account that pipeline runs use. */}}
{{- define "stillhouse.runs.serviceAccount" -}}
{{- default (ternary "default-editor" "pipeline-runner" .Values.kubeflow.multiUser) .Values.runs.serviceAccount -}}
{{- end }}

{{/* Host name of the MLflow server, and its address. */}}
{{- define "stillhouse.mlflow.host" -}}
{{ include "stillhouse.mlflow.fullname" . }}.{{ .Release.Namespace }}
{{- end }}

{{- define "stillhouse.mlflow.uri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "stillhouse.mlflow.host" . }}.svc:{{ .Values.mlflow.port }}
{{- else -}}
{{ .Values.mlflow.trackingUri }}
{{- end -}}
{{- end }}

{{/* The host names, with ports, that requests to the MLflow server may be for. */}}
{{- define "stillhouse.mlflow.allowedHosts" -}}
{{- $name := include "stillhouse.mlflow.fullname" . -}}
{{- $host := include "stillhouse.mlflow.host" . -}}
{{- $hosts := list -}}
{{- range list $name $host (printf "%s.svc" $host) (printf "%s.svc.%s" $host .Values.clusterDomain) -}}
{{- $hosts = append $hosts (printf "%s:%v" . $.Values.mlflow.port) -}}
{{- end -}}
{{- /* Through `kubectl port-forward`, which may choose any port. */ -}}
{{- $hosts = concat $hosts (list "localhost:*" "127.0.0.1:*") .Values.mlflow.allowedHosts -}}
{{- join "," $hosts -}}
{{- end }}

{{/* Where the server finds its tables. User and password are in the environment: they may hold any letter. */}}
{{- define "stillhouse.mlflow.database" -}}
{{- with .Values.mlflow.database -}}
postgresql+psycopg2://{{ .host }}:{{ .port }}/{{ .name }}?sslmode={{ .sslMode }}
{{- if .caSecret }}&sslrootcert=/etc/stillhouse/database/ca.crt{{ end -}}
{{- end -}}
{{- end }}

{{/* Port of an address. */}}
{{- define "stillhouse.port" -}}
{{- $url := urlParse . -}}
{{- $host := get $url "host" -}}
{{- if regexMatch ":[0-9]+$" $host -}}
{{ regexFind "[0-9]+$" $host }}
{{- else -}}
{{ ternary "443" "80" (eq (get $url "scheme") "https") }}
{{- end -}}
{{- end }}

{{/* A rule that lets pods look names up. */}}
{{- define "stillhouse.dnsEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
  {{- with .Values.networkPolicy.dns.to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* What `stillhouse publish` is told: the same as in values, with the keys that it has. */}}
{{- define "stillhouse.publication" -}}
{{- $files := .Values.publish.clusterFiles -}}
{{- $keys := dict "timeZone" "time_zone" "maxConcurrency" "max_concurrency" "catchUp" "catch_up" -}}
{{- $pipelines := list -}}
{{- range .Values.publish.pipelines -}}
{{- $entry := deepCopy . -}}
{{- if hasKey $files .cluster }}{{ $_ := set $entry "cluster" (printf "%s.yaml" .cluster) }}{{ end -}}
{{- $pipelines = append $pipelines $entry -}}
{{- end -}}
{{- $schedules := list -}}
{{- range .Values.publish.schedules -}}
{{- $entry := dict -}}
{{- range $key, $value := . }}{{ $_ := set $entry (get $keys $key | default $key) $value }}{{ end -}}
{{- if hasKey $files .cluster }}{{ $_ := set $entry "cluster" (printf "%s.yaml" .cluster) }}{{ end -}}
{{- $schedules = append $schedules $entry -}}
{{- end -}}
{{- toYaml (dict "cluster_time_zone" .Values.kubeflow.timeZone "pipelines" $pipelines "schedules" $schedules) -}}
{{- end }}
