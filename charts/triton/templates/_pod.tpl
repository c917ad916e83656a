{{/*
The Deployment of one track: (dict "root" $ "track" "stable" "name" … "model" .Values.model "replicas" 2), replicas
absent where something else sets them.
*/}}
{{- define "triton.deployment" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $version := include "triton.version" .model.version -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "triton.labels" $root | nindent 4 }}
    app.kubernetes.io/component: server
    stillhouse.dev/track: {{ .track }}
    stillhouse.dev/model-version: {{ $version | quote }}
  annotations:
    {{- include "triton.release" . | nindent 4 }}
spec:
  {{- if hasKey . "replicas" }}
  replicas: {{ .replicas }}
  {{- end }}
  revisionHistoryLimit: {{ $values.updateStrategy.revisionHistoryLimit }}
  progressDeadlineSeconds: {{ $values.updateStrategy.progressDeadlineSeconds }}
  minReadySeconds: {{ $values.updateStrategy.minReadySeconds }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: {{ $values.updateStrategy.maxSurge }}
      maxUnavailable: {{ $values.updateStrategy.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "triton.track" (list $root .track) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "triton.podLabels" $root | nindent 8 }}
        app.kubernetes.io/component: server
        stillhouse.dev/track: {{ .track }}
        stillhouse.dev/model-version: {{ $version | quote }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: triton
        checksum/pod: {{ $root.Files.Get "files/pod.py" | sha256sum }}
        {{- include "triton.release" . | nindent 8 }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "triton.serviceAccount" $root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ include "triton.gracePeriod" $root }}
      securityContext:
        {{- include "triton.podSecurityContext" $root | nindent 8 }}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if and (eq $values.device "gpu") $values.gpu.runtimeClassName }}
      runtimeClassName: {{ $values.gpu.runtimeClassName }}
      {{- end }}
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with concat $values.tolerations (ternary $values.gpu.tolerations list (eq $values.device "gpu")) }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $values.topologySpread.enabled }}
      topologySpreadConstraints:
        {{- range $values.topologySpread.topologyKeys }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: {{ $values.topologySpread.whenUnsatisfiable }}
          labelSelector:
            matchLabels:
              {{- include "triton.track" (list $root $.track) | nindent 14 }}
          # Pods of the revision that goes do not count.
          matchLabelKeys: [pod-template-hash]
        {{- end }}
      {{- end }}
      initContainers:
        {{- include "triton.fetch" . | nindent 8 }}
      containers:
        {{- include "triton.server" . | nindent 8 }}
        {{- with $values.extraContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      volumes:
        {{- include "triton.volumes" $root | nindent 8 }}
{{- end -}}

{{/* Which release a track is, where a label would not hold it. */}}
{{- define "triton.release" -}}
stillhouse.dev/model: {{ .root.Values.model.name | quote }}
stillhouse.dev/manifest-sha256: {{ .model.manifestSha256 | quote }}
{{- end -}}

{{/* What is null is the cluster's to choose. */}}
{{- define "triton.podSecurityContext" -}}
{{- $context := dict -}}
{{- range $key, $value := .Values.podSecurityContext }}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $context $key $value }}{{ end }}
{{- end }}
{{- if not $context.supplementalGroups }}{{ $_ := unset $context "supplementalGroups" }}{{ end }}
{{- toYaml $context -}}
{{- end -}}

{{/* Where a track's package is. A path that does not begin with / is one on the claim. */}}
{{- define "triton.source" -}}
{{- $source := .model.source -}}
{{- if not $source -}}
models:/{{ .root.Values.model.name }}/{{ include "triton.version" .model.version }}
{{- else if or (contains "://" $source) (hasPrefix "/" $source) -}}
{{ $source }}
{{- else -}}
/source/{{ $source }}
{{- end -}}
{{- end -}}

{{- define "triton.fetch" -}}
{{- $values := .root.Values -}}
- name: fetch
  image: {{ include "triton.image" (list $values.opsImage .root) }}
  imagePullPolicy: {{ $values.opsImage.pullPolicy }}
  command: [stillhouse, fetch]
  args:
    - {{ include "triton.source" . | quote }}
    - /models
    - --model
    - {{ $values.model.name | quote }}
    - --version
    - {{ include "triton.version" .model.version | quote }}
    - --manifest-sha256
    - {{ .model.manifestSha256 | quote }}
  env:
    {{- include "triton.opsEnvironment" .root | nindent 4 }}
    {{- with $values.mlflow.trackingUri }}
    - name: MLFLOW_TRACKING_URI
      value: {{ . | quote }}
    {{- end }}
    {{- with $values.fetch.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with compact (list $values.mlflow.existingSecret $values.objectStore.existingSecret) }}
  envFrom:
    {{- range . }}
    - secretRef:
        name: {{ . }}
        optional: true
    {{- end }}
  {{- end }}
  resources:
    {{- toYaml $values.fetch.resources | nindent 4 }}
  securityContext:
    {{- toYaml $values.securityContext | nindent 4 }}
  # What is printed last is what `kubectl describe pod` shows of a failure.
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - name: models
      mountPath: /models
    - name: tmp
      mountPath: /tmp
    {{- if $values.model.claim }}
    - name: source
      mountPath: /source
      readOnly: true
    {{- end }}
    {{- with $values.fetch.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "triton.server" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $probes := $values.probes -}}
- name: triton
  image: {{ include "triton.image" (list $values.image $root) }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  command: [tritonserver]
  args:
    {{- include "triton.arguments" $root | nindent 4 }}
  env:
    # The key of the calls that administer Triton: random for each pod, and in no manifest.
    - name: POD_KEY
      valueFrom:
        fieldRef:
          fieldPath: metadata.uid
    {{- if $values.requestLog.enabled }}
    {{- include "triton.requestLogEnvironment" $values.requestLog | nindent 4 }}
    {{- end }}
    {{- with $values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - name: grpc
      containerPort: 8001
    - name: metrics
      containerPort: 8002
    {{- if $values.http.enabled }}
    - name: http
      containerPort: 8000
    {{- end }}
  startupProbe:
    {{- include "triton.probe" (dict "what" "live" "root" $root "probe" $probes.startup) | nindent 4 }}
    terminationGracePeriodSeconds: {{ $probes.liveness.terminationGracePeriodSeconds }}
  livenessProbe:
    {{- include "triton.probe" (dict "what" "live" "root" $root "probe" $probes.liveness) | nindent 4 }}
    terminationGracePeriodSeconds: {{ $probes.liveness.terminationGracePeriodSeconds }}
  readinessProbe:
    {{- if include "triton.tls" $root }}
    # The kubelet's own gRPC probe does not speak TLS.
    {{- include "triton.probe" (dict "what" "ready" "root" $root "probe" $probes.readiness) | nindent 4 }}
    {{- else }}
    grpc:
      port: 8001
    periodSeconds: {{ $probes.readiness.periodSeconds }}
    timeoutSeconds: {{ $probes.readiness.timeoutSeconds }}
    failureThreshold: {{ $probes.readiness.failureThreshold }}
    {{- end }}
  lifecycle:
    preStop:
      exec:
        command:
          {{- include "triton.pod" (list "drain" $root) | nindent 10 }}
          - --delay={{ $values.drain.delaySeconds }}
          - --timeout={{ $values.drain.timeoutSeconds }}
  resources:
    {{- include "triton.resources" $values | nindent 4 }}
  securityContext:
    {{- toYaml $values.securityContext | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - name: models
      mountPath: /models
      readOnly: true
    - name: tmp
      mountPath: /tmp
    - name: shm
      mountPath: /dev/shm
    - name: pod
      mountPath: /opt/stillhouse/pod
      readOnly: true
    {{- if include "triton.tls" $root }}
    - name: tls
      mountPath: /tls
      readOnly: true
    {{- end }}
    {{- if $values.requestLog.enabled }}
    - name: requests
      mountPath: /requests
    {{- end }}
    {{- with $values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "triton.arguments" -}}
{{- $values := .Values -}}
{{- $closed := "shared-memory,model-repository,trace,logging:closed=$(POD_KEY)" -}}
- --model-repository=/models/triton
- --model-control-mode=explicit
- --load-model=*
- --disable-auto-complete-config
- --exit-timeout-secs={{ $values.drain.exitTimeoutSeconds }}
- --grpc-port=8001
- --grpc-restricted-protocol={{ $closed }}
{{- with $values.grpc.maxConnectionAgeSeconds }}
- --grpc-max-connection-age={{ mul . 1000 }}
{{- end }}
{{- if include "triton.tls" . }}
- --grpc-use-ssl=true
- --grpc-server-cert=/tls/tls.crt
- --grpc-server-key=/tls/tls.key
{{- if $values.tls.clientCASecret }}
- --grpc-use-ssl-mutual=true
- --grpc-root-cert=/tls/client-ca.crt
{{- end }}
{{- end }}
- --allow-http=true
- --http-address={{ ternary "0.0.0.0" "127.0.0.1" $values.http.enabled }}
- --http-port=8000
- --http-restricted-api={{ $closed }}
- --allow-metrics=true
- --metrics-address=0.0.0.0
- --metrics-port=8002
- --metrics-config=summary_latencies=true
- --allow-gpu-metrics={{ eq $values.device "gpu" }}
{{- with $values.responseCache.bytes }}
- --cache-config=local,size={{ int64 . }}
{{- end }}
{{- with $values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A command of files/pod.py: (list "live" $). */}}
{{- define "triton.pod" -}}
- python3
- -IS
- /opt/stillhouse/pod/pod.py
- {{ index . 0 }}
- {{ (index . 1).Values.model.name | quote }}
{{- end -}}

{{- define "triton.probe" -}}
exec:
  command:
    {{- include "triton.pod" (list .what .root) | nindent 4 }}
    # Less than the kubelet's own, so that the reason is told.
    - --timeout={{ subf .probe.timeoutSeconds 0.5 }}
periodSeconds: {{ .probe.periodSeconds }}
timeoutSeconds: {{ .probe.timeoutSeconds }}
failureThreshold: {{ .probe.failureThreshold }}
{{- end -}}

{{- define "triton.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if eq .device "gpu" }}
{{- range list "requests" "limits" }}
{{- $_ := set $resources . (merge (dict $.gpu.resourceName $.gpu.count) (get $resources . | default dict)) }}
{{- end }}
{{- end }}
{{- toYaml $resources -}}
{{- end -}}

{{- define "triton.requestLogEnvironment" -}}
- name: STILLHOUSE_REQUEST_LOG
  value: /requests
- name: STILLHOUSE_REQUEST_LOG_SAMPLE
  value: {{ .sample | quote }}
- name: STILLHOUSE_REQUEST_LOG_TEXT
  value: {{ .text }}
- name: STILLHOUSE_REQUEST_LOG_MAX_BYTES
  value: {{ int64 .maxBytes | quote }}
{{- with .keySecret }}
- name: STILLHOUSE_REQUEST_LOG_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: key
{{- end }}
{{- end -}}

{{- define "triton.volumes" -}}
{{- $values := .Values -}}
- name: models
  emptyDir:
    sizeLimit: {{ $values.models.sizeLimit }}
- name: tmp
  emptyDir:
    sizeLimit: {{ $values.tmp.sizeLimit }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ $values.shm.sizeLimit }}
- name: pod
  configMap:
    name: {{ include "triton.fullname" . }}-pod
{{- if include "triton.tls" . }}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "triton.tlsSecret" . }}
          items:
            - {key: tls.crt, path: tls.crt}
            - {key: tls.key, path: tls.key}
      {{- with $values.tls.clientCASecret }}
      - secret:
          name: {{ . }}
          items:
            - {key: ca.crt, path: client-ca.crt}
      {{- end }}
{{- end }}
{{- if $values.model.claim }}
- name: source
  persistentVolumeClaim:
    claimName: {{ $values.model.claim }}
    readOnly: true
{{- end }}
{{- if $values.requestLog.enabled }}
- name: requests
  {{- if $values.requestLog.claim }}
  persistentVolumeClaim:
    claimName: {{ $values.requestLog.claim }}
  {{- else }}
  emptyDir:
    # Above what the log takes by its own rule, so that no pod is evicted for it.
    sizeLimit: {{ add (int64 $values.requestLog.maxBytes) 67108864 }}
  {{- end }}
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
