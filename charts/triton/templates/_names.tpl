{{- define "triton.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name -}}
{{- end -}}

{{/* A version as text: --set makes numbers of digits, and YAML makes floats of large ones. */}}
{{- define "triton.version" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{- define "triton.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ $image.tag | default (index . 1).Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* What both tracks and the helm tests have in common. */}}
{{- define "triton.identity" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* All pods that serve. */}}
{{- define "triton.servers" -}}
{{ include "triton.identity" . }}
app.kubernetes.io/component: server
{{- end -}}

{{/* The pods of one track: (list . "stable"). */}}
{{- define "triton.track" -}}
{{ include "triton.identity" (index . 0) }}
stillhouse.dev/track: {{ index . 1 }}
{{- end -}}

{{- define "triton.labels" -}}
{{ include "triton.identity" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: stillhouse
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods: nothing that an upgrade of the chart alone would change. */}}
{{- define "triton.podLabels" -}}
{{ include "triton.identity" . }}
app.kubernetes.io/part-of: stillhouse
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "triton.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "triton.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* The Service that reaches one track alone: (list . "stable"). */}}
{{- define "triton.trackService" -}}
{{- $root := index . 0 -}}
{{- include "triton.fullname" $root }}{{ if $root.Values.canary.enabled }}-{{ index . 1 }}{{ end -}}
{{- end -}}

{{/* "true" where callers' connections are encrypted. */}}
{{- define "triton.tls" -}}
{{- if or .Values.tls.existingSecret .Values.tls.certManager.enabled }}true{{ end -}}
{{- end -}}

{{- define "triton.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "triton.fullname" .)) -}}
{{- end -}}

{{/* A pod's life after it is told to end, in seconds; the last ten are for the container engine. */}}
{{- define "triton.gracePeriod" -}}
{{- with .Values.drain }}{{ add .delaySeconds .timeoutSeconds .exitTimeoutSeconds 10 }}{{ end -}}
{{- end -}}

{{/* Environment of a container of the ops image, on a read-only root. */}}
{{- define "triton.opsEnvironment" -}}
- name: HOME
  value: /tmp
{{- end -}}

{{/* Bytes of a Kubernetes quantity such as 256Mi, for comparisons. */}}
{{- define "triton.bytes" -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[a-zA-Z]+$" $text -}}
{{- $number := float64 (trimSuffix $unit $text) -}}
{{- $factors := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- int64 (mulf $number (get $factors $unit | default 1)) -}}
{{- end -}}
