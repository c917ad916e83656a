{{/* Labels of a release's series in Prometheus: (list . "stable"), or (list . "") for both tracks. */}}
{{- define "triton.series" -}}
{{- $root := index . 0 -}}
{{ include "triton.scraped" $root }}{{ with index . 1 }},stillhouse_track="{{ . }}"{{ end }},model="{{ $root.Values.model.name }}"
{{- end -}}

{{/* The same with neither model nor track. */}}
{{- define "triton.scraped" -}}
namespace="{{ .Release.Namespace }}",stillhouse_release="{{ .Release.Name }}"
{{- end -}}

{{/* Seconds of waiting per second of computing: (dict "series" … "window" "5m" "by" "stillhouse_track"). */}}
{{- define "triton.queueRatio" -}}
{{- $by := ternary (printf " by (%s) " .by) "" (hasKey . "by") -}}
sum{{ $by }}(rate(stillhouse_queue_seconds_total{ {{- .series -}} }[{{ .window }}])) / clamp_min(sum{{ $by }}(rate(stillhouse_compute_seconds_total{ {{- .series -}} }[{{ .window }}])), 0.001)
{{- end -}}
