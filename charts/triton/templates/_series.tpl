{{/* Labels of a release's series in Prometheus: (list . "stable"), or (list . "") for both tracks. */}}
{{- define "triton.series" -}}
{{- $root := index . 0 -}}
namespace="{{ $root.Release.Namespace }}",stillhouse_release="{{ $root.Release.Name }}"{{ with index . 1 }},stillhouse_track="{{ . }}"{{ end }},model="{{ $root.Values.model.name }}"
{{- end -}}

{{/* Seconds of waiting per second of computing: (dict "series" … "window" "5m" "by" "stillhouse_track"). */}}
{{- define "triton.queueRatio" -}}
{{- $by := ternary (printf " by (%s) " .by) "" (hasKey . "by") -}}
sum{{ $by }}(rate(stillhouse_queue_seconds_total{ {{- .series -}} }[{{ .window }}])) / clamp_min(sum{{ $by }}(rate(stillhouse_compute_seconds_total{ {{- .series -}} }[{{ .window }}])), 0.001)
{{- end -}}
