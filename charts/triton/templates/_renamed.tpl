{{/*
Keys that have another name here: of earlier releases of this chart, and as other charts have them. values.schema.json lists
them too, so that they get as far as this table, which says what to write instead.
*/}}
{{- define "triton.renamed" -}}
autoscaling.max: autoscaling.maxReplicas
autoscaling.maxReplicaCount: autoscaling.maxReplicas
autoscaling.min: autoscaling.minReplicas
autoscaling.minReplicaCount: autoscaling.minReplicas
autoscaling.targetCPUUtilizationPercentage: autoscaling.cpuUtilization
canary.manifestSha256: canary.model.manifestSha256
canary.percent: canary.weight
canary.version: canary.model.version
certManager: tls.certManager
containerSecurityContext: securityContext
env: extraEnv
gateway: route
gpu.enabled: "device: gpu"
gpus: gpu.count
grpcRoute: route
hpa: autoscaling
httpRoute: route
image.imageName: image.repository
image.name: image.repository
image.pullSecrets: imagePullSecrets
ingress.hosts: ingress.host
ingress.tls: ingress.tlsSecret
initImage: opsImage
keda: "autoscaling.kind: keda"
livenessProbe: probes.liveness
metrics: monitoring
mlflow.secretName: mlflow.existingSecret
mlflow.uri: mlflow.trackingUri
mlflow.url: mlflow.trackingUri
model.repositoryPath: model.source
model.sha256: model.manifestSha256
model.uri: model.source
modelName: model.name
modelRepositoryPath: model.source
modelVersion: model.version
nameOverride: fullnameOverride
objectStore.secretName: objectStore.existingSecret
pdb: podDisruptionBudget
prometheusRule: monitoring.prometheusRule
pvc: model.claim
readinessProbe: probes.readiness
replicaCount: replicas
runtimeClassName: gpu.runtimeClassName
serviceAccountName: serviceAccount.name
serviceMonitor: monitoring.serviceMonitor
service.grpcPort: service.port
startupProbe: probes.startup
strategy: updateStrategy
terminationGracePeriodSeconds: drain.delaySeconds, drain.timeoutSeconds and drain.exitTimeoutSeconds, whose sum it is
tests: smokeTest
tls.enabled: tls.existingSecret or tls.certManager.enabled, each of which switches TLS on
tls.secretName: tls.existingSecret
topologySpreadConstraints: topologySpread
{{- end -}}
