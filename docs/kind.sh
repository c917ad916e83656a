#!/usr/bin/env bash
# The whole of it on one machine: a kind cluster with MLflow from charts/stillhouse, a model that is trained here on built-in
# data, and served there by charts/triton, in pods of the development image.
#
#   docs/kind.sh up          make all of it, and ask the endpoint; again, it goes on where it stopped
#   docs/kind.sh deploy      train and deploy once more
#   docs/kind.sh ask TEXT…   ask the endpoint
#   docs/kind.sh status      show what serves
#   docs/kind.sh down        delete the cluster, and all that is in it
#
# It needs Docker, kind, kubectl and helm on the path, a registry to pull PostgreSQL and the images' bases from, 16 GB of
# memory, 30 GB of disk, and Stillhouse in the active environment:
#
#   python3 -m venv .venv && .venv/bin/pip install --constraint constraints.txt --editable '.[local,ops]'
#   PATH="$PWD/.venv/bin:$PATH" docs/kind.sh up
#
# Variables:
#   CLUSTER=stillhouse       name of the cluster
#   PRESET=demo              how the model is trained
#   PULL=1                   take the released images, do not build them
#   KUBEFLOW=2.15.0          also install this release of Kubeflow Pipelines, and publish the pipeline to it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CLUSTER=${CLUSTER:-stillhouse}
PRESET=${PRESET:-demo}
KUBEFLOW=${KUBEFLOW:-}
MODEL=reviews
SERVING=stillhouse-serving
CONTEXT=kind-$CLUSTER
# Kubeflow Pipelines alone runs everything in its own namespace.
NAMESPACE=stillhouse
[[ -z $KUBEFLOW ]] || NAMESPACE=kubeflow
VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/stillhouse/__init__.py)
REGISTRY=ghcr.io/stillhouse
IMAGES=(train ops triton-dev)
export STILLHOUSE_HOME=${STILLHOUSE_HOME:-$PWD/.stillhouse/kind}

SCRATCH=$(mktemp -d)
FORWARDS=()
finish() {
    local pid
    for pid in "${FORWARDS[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$SCRATCH"
}
trap finish EXIT

say() { printf '\n== %s\n' "$*"; }
kube() { kubectl --context "$CONTEXT" "$@"; }

# forward NAMESPACE SERVICE PORT: let localhost:PORT lead to the service until the script ends.
forward() {
    local log=$SCRATCH/forward-$2
    kube --namespace "$1" port-forward "svc/$2" "$3:$3" >"$log" 2>&1 &
    FORWARDS+=($!)
    until grep -q Forwarding "$log"; do
        if ! kill -0 $! 2>/dev/null; then
            cat "$log" >&2
            return 1
        fi
        sleep 0.2
    done
}

need() {
    local missing=() tool
    for tool in docker kind kubectl helm stillhouse; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    if ((${#missing[@]})); then
        echo "Not on the path: ${missing[*]}. See the top of ${BASH_SOURCE[0]}." >&2
        exit 1
    fi
}

images() {
    local name image
    for name in "${IMAGES[@]}"; do
        image=$REGISTRY/stillhouse-$name:$VERSION
        if [[ -n ${PULL:-} ]]; then
            docker pull "$image"
        elif ! docker image inspect "$image" >/dev/null 2>&1; then
            make "image-$name" TORCH_INDEX_URL="${TORCH_INDEX_URL-https://download.pytorch.org/whl/cpu}"
        fi
        kind load docker-image --name "$CLUSTER" "$image"
    done
}

# A database for trying things out: its data goes with its pod. In production, use one that somebody looks after.
database() {
    if ! kube --namespace "$NAMESPACE" get secret stillhouse-mlflow-database >/dev/null 2>&1; then
        kube --namespace "$NAMESPACE" create secret generic stillhouse-mlflow-database --from-literal=username=mlflow \
            --from-file=password=<(head -c 18 /dev/urandom | base64 | tr -d '\n')
    fi
    kube --namespace "$NAMESPACE" apply --filename - <<'MANIFESTS'
apiVersion: v1
kind: Service
metadata:
  name: postgresql
spec:
  selector: {app: postgresql}
  ports:
    - {name: postgresql, port: 5432}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: postgresql
spec:
  strategy: {type: Recreate}
  selector:
    matchLabels: {app: postgresql}
  template:
    metadata:
      labels: {app: postgresql}
    spec:
      automountServiceAccountToken: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 70
        fsGroup: 70
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: postgresql
          image: docker.io/library/postgres:17-alpine
          securityContext:
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
          env:
            - {name: POSTGRES_DB, value: mlflow}
            - {name: PGDATA, value: /var/lib/postgresql/data/mlflow}
            - name: POSTGRES_USER
              valueFrom:
                secretKeyRef: {name: stillhouse-mlflow-database, key: username}
            - name: POSTGRES_PASSWORD
              valueFrom:
                secretKeyRef: {name: stillhouse-mlflow-database, key: password}
          ports:
            - {name: postgresql, containerPort: 5432}
          readinessProbe:
            exec:
              command: [sh, -c, pg_isready --username "$POSTGRES_USER"]
          resources:
            requests: {cpu: 100m, memory: 256Mi}
            limits: {memory: 512Mi}
          volumeMounts:
            - {name: data, mountPath: /var/lib/postgresql/data}
      volumes:
        - name: data
          emptyDir: {}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: mlflow-artifacts
spec:
  accessModes: [ReadWriteOnce]
  resources:
    requests: {storage: 10Gi}
MANIFESTS
}

kubeflow() {
    local base=github.com/kubeflow/pipelines/manifests/kustomize
    kube apply --kustomize "$base/cluster-scoped-resources?ref=$KUBEFLOW"
    kube wait --for condition=established --timeout 60s crd/applications.app.k8s.io
    kube apply --kustomize "$base/env/platform-agnostic?ref=$KUBEFLOW"
    kube --namespace kubeflow wait --for condition=available --timeout 15m deployment/ml-pipeline
}

house() {
    local options=(--set publish.enabled=false)
    [[ -z $KUBEFLOW ]] || options=(--set kubeflow.multiUser=false --set 'publish.pipelines[0].cluster=cpu')
    helm upgrade --install stillhouse charts/stillhouse --kube-context "$CONTEXT" --namespace "$NAMESPACE" \
        --set serving.namespace="$SERVING" \
        --set mlflow.database.host=postgresql --set mlflow.database.name=mlflow --set mlflow.database.sslMode=disable \
        --set mlflow.artifacts.destination=/mlartifacts --set mlflow.artifacts.claim=mlflow-artifacts \
        --set mlflow.workers=1 "${options[@]}" --wait --timeout 20m
}

deploy() {
    cat >"$SCRATCH/triton.yaml" <<VALUES
image:
  repository: $REGISTRY/stillhouse-triton-dev
mlflow:
  # From the pods. This machine reaches the same server at localhost.
  trackingUri: http://stillhouse-mlflow.$NAMESPACE.svc:5000
replicas: 1
resources:
  requests: {cpu: 500m, memory: 1Gi}
  limits: {memory: 2Gi}
VALUES
    say "Training $MODEL here, with the preset $PRESET"
    stillhouse run --preset "$PRESET" --set model_name="$MODEL" --set deploy_target=none
    say "Deploying it to $SERVING"
    stillhouse deploy "models:/$MODEL@challenger" --target kubernetes --context "$CONTEXT" --namespace "$SERVING" \
        --values "$SCRATCH/triton.yaml"
}

mlflow() {
    forward "$NAMESPACE" stillhouse-mlflow 5000
    export MLFLOW_TRACKING_URI=http://localhost:5000
}

ask() {
    say "Asking $MODEL"
    forward "$SERVING" "$MODEL" 8001
    stillhouse predict --url localhost:8001 --model "$MODEL" "$@"
}

EXAMPLES=("The room was spotless and the staff could not have been kinder."
    "I expected to love it, but the soup was bland and the waiter rude.")

case ${1:-} in
up)
    need
    say "The cluster $CLUSTER"
    kind get clusters 2>/dev/null | grep -qx "$CLUSTER" || kind create cluster --name "$CLUSTER" --wait 3m
    say "Images"
    images
    if [[ -n $KUBEFLOW ]]; then
        say "Kubeflow Pipelines $KUBEFLOW"
        kubeflow
    else
        kube create namespace "$NAMESPACE" --dry-run=client --output yaml | kube apply --filename -
    fi
    say "MLflow and the deployer"
    database
    house
    mlflow
    deploy
    ask "${EXAMPLES[@]}"
    say "It is up. $0 status, $0 ask TEXT…, $0 deploy, $0 down"
    ;;
deploy)
    need
    mlflow
    deploy
    ;;
ask)
    need
    shift
    (($#)) || set -- "${EXAMPLES[@]}"
    ask "$@"
    ;;
status)
    need
    mlflow
    stillhouse status "$MODEL" --target kubernetes --context "$CONTEXT" --namespace "$SERVING"
    stillhouse releases "$MODEL" --target kubernetes --context "$CONTEXT" --namespace "$SERVING"
    ;;
down)
    need
    kind delete cluster --name "$CLUSTER"
    ;;
*)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
