{{/*
What values.schema.json cannot say: keys that were renamed, what is required, and what contradicts itself. Everything at
once, each line with its key and what to do.
*/}}
{{- define "triton.validate" -}}
{{- $values := .Values -}}
{{- $found := list -}}
{{- range $old, $new := fromYaml (include "triton.renamed" .) -}}
{{- $at := $values -}}
{{- range $part := splitList "." $old -}}
{{- if and (kindIs "map" $at) (hasKey $at $part) }}{{ $at = get $at $part }}{{ else }}{{ $at = "absent" }}{{ break }}{{ end -}}
{{- end -}}
{{- if not (eq (toString $at) "absent") }}{{ $found = append $found (printf "%s is not a key of this chart: write %s." $old $new) }}{{ end -}}
{{- end -}}
{{- $found = concat $found (fromJsonArray (include "triton.modelFaults" .)) (fromJsonArray (include "triton.scalingFaults" .)) (fromJsonArray (include "triton.callerFaults" .)) (fromJsonArray (include "triton.podFaults" .)) -}}
{{- if $found }}{{ fail (printf "\n\nThe values do not fit together:\n  - %s\n" (join "\n  - " $found)) }}{{ end -}}
{{- end -}}

{{/* (list "canary.model" .Values.canary.model .Values.model.claim): what is wrong with one version. */}}
{{- define "triton.versionFaults" -}}
{{- $at := index . 0 -}}
{{- $model := index . 1 -}}
{{- $claim := index . 2 -}}
{{- $found := list -}}
{{- if not (include "triton.version" $model.version) }}{{ $found = append $found (printf "%s.version is required: the version in the registry, such as \"7\"." $at) }}{{ end -}}
{{- if not $model.manifestSha256 }}{{ $found = append $found (printf "%s.manifestSha256 is required: the sha256 of the version's package.json, which is a tag of the version in MLflow." $at) }}{{ end -}}
{{- $path := and $model.source (not (contains "://" $model.source)) -}}
{{- if and $path (not $claim) }}{{ $found = append $found (printf "%s.source is a path, and model.claim names no volume that it is on." $at) }}{{ end -}}
{{- if and $path (hasPrefix "/" $model.source) (not (hasPrefix "/source/" $model.source)) }}{{ $found = append $found (printf "%s.source: %s is not on the claim, which is mounted at /source; give a path on the claim, without / at its beginning." $at $model.source) }}{{ end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "triton.modelFaults" -}}
{{- $values := .Values -}}
{{- $found := list -}}
{{- if not $values.model.name }}{{ $found = append $found "model.name is required: the registered name of the model." }}{{ end -}}
{{- $found = concat $found (fromJsonArray (include "triton.versionFaults" (list "model" $values.model $values.model.claim))) -}}
{{- if $values.canary.enabled }}
{{- $canary := $values.canary.model -}}
{{- $found = concat $found (fromJsonArray (include "triton.versionFaults" (list "canary.model" $canary $values.model.claim))) -}}
{{- $version := include "triton.version" $canary.version -}}
{{- if and $version (eq $version (include "triton.version" $values.model.version)) }}{{ $found = append $found (printf "canary.model.version is %s, which is model.version too: a canary is another version." $version) }}{{ end -}}
{{- end -}}
{{- $sources := list $values.model.source (ternary $values.canary.model.source "" $values.canary.enabled) -}}
{{- $paths := list -}}
{{- range $sources }}{{ if and . (not (contains "://" .)) }}{{ $paths = append $paths . }}{{ end }}{{ end -}}
{{- if and $values.model.claim (not $paths) }}{{ $found = append $found "model.claim is given, and model.source is no path on it." }}{{ end -}}
{{- if eq $values.device "gpu" }}
{{- if lt (int $values.gpu.count) 1 }}{{ $found = append $found "device is gpu, and gpu.count is 0: give 1, or device: cpu." }}{{ end -}}
{{- if hasSuffix "triton-dev" $values.image.repository }}{{ $found = append $found "device is gpu, and image.repository is stillhouse-triton-dev, which is for CPUs: use stillhouse-triton." }}{{ end -}}
{{- else if $values.gpu.runtimeClassName }}{{ $found = append $found "gpu.runtimeClassName is given, and device is cpu: give device: gpu." }}{{ end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "triton.scalingFaults" -}}
{{- $scaling := .Values.autoscaling -}}
{{- $ratio := float64 $scaling.queueRatio -}}
{{- $found := list -}}
{{- if $scaling.enabled }}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) }}{{ $found = append $found (printf "autoscaling.minReplicas is %v, above autoscaling.maxReplicas, %v." $scaling.minReplicas $scaling.maxReplicas) }}{{ end -}}
{{- if and $scaling.cpuUtilization (not ((.Values.resources.requests).cpu)) }}{{ $found = append $found "autoscaling.cpuUtilization is a share of resources.requests.cpu, which is not given." }}{{ end -}}
{{- if eq $scaling.kind "keda" }}
{{- if and $ratio (not $scaling.keda.prometheusUrl) }}{{ $found = append $found "autoscaling.keda.prometheusUrl is required for autoscaling.queueRatio: where KEDA reads the ratio. Without Prometheus, give autoscaling.queueRatio: 0." }}{{ end -}}
{{- if not (or $ratio $scaling.cpuUtilization) }}{{ $found = append $found "autoscaling.queueRatio and autoscaling.cpuUtilization are both 0: there is nothing to scale by." }}{{ end -}}
{{- if $scaling.hpa.queueMetric }}{{ $found = append $found "autoscaling.hpa.queueMetric is given, and autoscaling.kind is keda: give kind: hpa." }}{{ end -}}
{{- else }}
{{- if $scaling.keda.prometheusUrl }}{{ $found = append $found "autoscaling.keda.prometheusUrl is given, and autoscaling.kind is hpa: give kind: keda." }}{{ end -}}
{{- if and $scaling.hpa.queueMetric (not $ratio) }}{{ $found = append $found "autoscaling.hpa.queueMetric is given, and autoscaling.queueRatio, its target, is 0." }}{{ end -}}
{{- if not (or $scaling.hpa.queueMetric $scaling.cpuUtilization) }}{{ $found = append $found "autoscaling.hpa.queueMetric is not given, and autoscaling.cpuUtilization is 0: there is nothing to scale by." }}{{ end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "triton.callerFaults" -}}
{{- $values := .Values -}}
{{- $found := list -}}
{{- $tls := include "triton.tls" . -}}
{{- if and $values.tls.existingSecret $values.tls.certManager.enabled }}{{ $found = append $found "tls.existingSecret and tls.certManager.enabled are both given: the certificate comes from one of them." }}{{ end -}}
{{- if and $values.tls.certManager.enabled (not $values.tls.certManager.issuerRef.name) }}{{ $found = append $found "tls.certManager.issuerRef.name is required: who signs the certificate." }}{{ end -}}
{{- if and $values.tls.clientCASecret (not $tls) }}{{ $found = append $found "tls.clientCASecret is given, and there is no TLS: give tls.existingSecret or tls.certManager.enabled." }}{{ end -}}
{{- if and $values.tls.clientCASecret $values.smokeTest.enabled (not $values.smokeTest.clientSecret) }}{{ $found = append $found "smokeTest.clientSecret is required with tls.clientCASecret: the smoke test is a client too. Or give smokeTest.enabled: false." }}{{ end -}}
{{- if and $tls $values.http.enabled }}{{ $found = append $found "http.enabled: Triton's HTTP has no TLS, and tls asks for it. Leave one of them off." }}{{ end -}}
{{- if and $values.route.enabled $values.ingress.enabled }}{{ $found = append $found "route.enabled and ingress.enabled are both given: callers come in by one of them." }}{{ end -}}
{{- if and $values.route.enabled (not $values.route.parentRefs) }}{{ $found = append $found "route.parentRefs is required: the gateway that the route belongs to." }}{{ end -}}
{{- if $values.ingress.enabled }}
{{- if not $values.ingress.host }}{{ $found = append $found "ingress.host is required." }}{{ end -}}
{{- if not $values.ingress.tlsSecret }}{{ $found = append $found "ingress.tlsSecret is required: ingress-nginx passes gRPC on for TLS only." }}{{ end -}}
{{- end -}}
{{- $age := $values.grpc.maxConnectionAgeSeconds -}}
{{- /* gRPC varies the age by a tenth, and endpoints take a moment to go. */ -}}
{{- if and $age (gt (addf (mulf $age 1.1) 2) (float64 $values.drain.delaySeconds)) }}{{ $found = append $found (printf "grpc.maxConnectionAgeSeconds is %v: connections of that age outlast drain.delaySeconds, %v. Give an age of %d at most, or a longer delay." $age $values.drain.delaySeconds (int (divf (subf $values.drain.delaySeconds 2) 1.1))) }}{{ end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "triton.podFaults" -}}
{{- $values := .Values -}}
{{- $found := list -}}
{{- $strategy := $values.updateStrategy -}}
{{- if and (has (toString $strategy.maxSurge) (list "0" "0%")) (has (toString $strategy.maxUnavailable) (list "0" "0%")) }}{{ $found = append $found "updateStrategy.maxSurge and updateStrategy.maxUnavailable are both 0: no pod could ever be replaced." }}{{ end -}}
{{- if and $values.requestLog.enabled (eq $values.requestLog.text "hash") (not $values.requestLog.keySecret) }}{{ $found = append $found "requestLog.keySecret is required for requestLog.text: hash, or short texts can be guessed from their hashes." }}{{ end -}}
{{- if and $values.requestLog.claim (not $values.requestLog.enabled) }}{{ $found = append $found "requestLog.claim is given, and requestLog.enabled is false." }}{{ end -}}
{{- with ($values.resources.limits).memory }}
{{- if ge (int64 (include "triton.bytes" $values.shm.sizeLimit)) (int64 (include "triton.bytes" .)) }}{{ $found = append $found (printf "shm.sizeLimit, %s, is part of resources.limits.memory, %v, and leaves nothing of it." $values.shm.sizeLimit .) }}{{ end -}}
{{- end -}}
{{- $own := list -}}
{{- range splitList "\n" (include "triton.arguments" (dict "Values" (set (deepCopy $values) "extraArgs" list))) }}{{ $own = append $own (regexFind "--[a-z-]+" .) }}{{ end -}}
{{- range $values.extraArgs }}
{{- $option := regexFind "^--[a-z-]+" . -}}
{{- if and $option (has $option $own) (not (has $option (list "--cache-config" "--metrics-config"))) }}{{ $found = append $found (printf "extraArgs: %s is what the chart sets itself, by other values." $option) }}{{ end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
