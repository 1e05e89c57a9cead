#!/usr/bin/env bash
# A Kubernetes control plane of its own on this machine: up.sh build | start | stop | status | all
# Its programs, state and logs are in $WORKER_KUBE. Its servers listen on 127.0.0.1; pods and their store are
# in network namespaces that lead nowhere else. Run from the root of the checkout, as root.
set -euo pipefail
H=$(cd "$(dirname "$0")" && pwd)
export WORKER_KUBE=${WORKER_KUBE:-$HOME/.cache/worker-kube}
export BIN=$WORKER_KUBE/bin
CFG=$WORKER_KUBE/cfg LOGS=$WORKER_KUBE/logs STATE=$WORKER_KUBE/state
KUBE=${KUBE:-v1.34.4}
PORT=16443 ETCD_PORT=12379
PRODUCT=${PRODUCT:-$PWD}; export PRODUCT   # root of the checkout, with its .venv
PY=$PRODUCT/.venv/bin/python
FABRIC=kube-fabric
mkdir -p "$BIN" "$CFG/pki" "$LOGS" "$STATE/control"
export KUBECONFIG=$CFG/admin.kubeconfig

build() {
  if [ ! -x "$WORKER_KUBE/pkg/tini/usr/bin/tini-static" ]; then
    mkdir -p "$WORKER_KUBE/pkg"; (cd "$WORKER_KUBE/pkg" && apt-get download tini >/dev/null 2>&1 && dpkg -x tini_*.deb tini)
  fi
  cp -r "$H/build" "$WORKER_KUBE"  # where go writes its own files
  (cd "$WORKER_KUBE/build/k8s" && bash gen.sh "$KUBE" && bash build.sh "$KUBE")
  bash "$WORKER_KUBE/build/more.sh"
}

start_one() {  # name command...
  local name=$1; shift
  if [ -f "$STATE/$name.pid" ] && kill -0 "$(cat "$STATE/$name.pid")" 2>/dev/null; then return; fi
  setsid nohup "$@" >>"$LOGS/$name.log" 2>&1 </dev/null &
  echo $! >"$STATE/$name.pid"
}

wait_for() {  # seconds command...
  local left=$1; shift
  until "$@" >/dev/null 2>&1; do
    left=$((left - 1)); [ "$left" -gt 0 ] || { echo "gave up on: $*" >&2; return 1; }
    sleep 1
  done
}

kubeconfig() {  # file token
  cat >"$1" <<EOT
apiVersion: v1
kind: Config
clusters: [{name: local, cluster: {server: "https://127.0.0.1:$PORT", certificate-authority: $CFG/pki/apiserver.crt}}]
users: [{name: me, user: {token: $2}}]
contexts: [{name: local, context: {cluster: local, user: me}}]
current-context: local
EOT
}

start() {
  if [ ! -f "$CFG/sa.key" ]; then
    openssl genrsa -out "$CFG/sa.key" 2048 2>/dev/null
    T=$(openssl rand -hex 16); echo "$T,admin,admin,system:masters" >"$CFG/tokens.csv"; echo "$T" >"$CFG/token"
  fi
  TOKEN=$(cat "$CFG/token")
  for who in admin controller scheduler; do kubeconfig "$CFG/$who.kubeconfig" "$TOKEN"; done

  start_one etcd "$BIN/etcd" --name=one --data-dir="$STATE/etcd" --unsafe-no-fsync \
    --listen-client-urls=http://127.0.0.1:$ETCD_PORT --advertise-client-urls=http://127.0.0.1:$ETCD_PORT \
    --listen-peer-urls=http://127.0.0.1:$((ETCD_PORT + 1)) --initial-advertise-peer-urls=http://127.0.0.1:$((ETCD_PORT + 1)) \
    --initial-cluster=one=http://127.0.0.1:$((ETCD_PORT + 1)) --log-level=warn
  start_one apiserver nice -n 5 "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:$ETCD_PORT \
    --bind-address=127.0.0.1 --secure-port=$PORT --cert-dir="$CFG/pki" --endpoint-reconciler-type=none \
    --advertise-address=198.18.0.1 --service-cluster-ip-range=198.19.0.0/24,fd00:19::/108 \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$CFG/sa.key" --service-account-signing-key-file="$CFG/sa.key" \
    --token-auth-file="$CFG/tokens.csv" --authorization-mode=Node,RBAC \
    --kubelet-preferred-address-types=InternalIP --profiling=false \
    --default-not-ready-toleration-seconds=10 --default-unreachable-toleration-seconds=10
  wait_for 180 "$BIN/kubectl" get --raw=/readyz
  start_one controller-manager nice -n 5 "$BIN/kube-controller-manager" --kubeconfig="$CFG/controller.kubeconfig" \
    --leader-elect=false --bind-address=127.0.0.1 --secure-port=0 --cert-dir="$CFG/pki" \
    --service-account-private-key-file="$CFG/sa.key" --root-ca-file="$CFG/pki/apiserver.crt" \
    --node-monitor-period=2s --node-monitor-grace-period=14s
  start_one scheduler nice -n 5 "$BIN/kube-scheduler" --kubeconfig="$CFG/scheduler.kubeconfig" \
    --authentication-kubeconfig="$CFG/scheduler.kubeconfig" --authorization-kubeconfig="$CFG/scheduler.kubeconfig" \
    --leader-elect=false --bind-address=127.0.0.1 --secure-port=16259 --cert-dir="$CFG/pki"

  if ! ip netns list | grep -q "^$FABRIC\b"; then
    ip netns add $FABRIC
    ip -n $FABRIC link set lo up
    ip -n $FABRIC link add br0 type bridge
    for a in 1 2 3; do
      ip -n $FABRIC addr add 198.18.0.$a/16 dev br0
      ip -n $FABRIC addr add fd00:18::$a/64 dev br0 nodad
    done
    ip -n $FABRIC link set br0 up
  fi
  start_one store env S3_IGNORE_SUBDOMAIN_BUCKETNAME=1 ip netns exec $FABRIC "$(dirname "$PY")/moto_server" -H :: -p 9000
  start_one kubelet "$PY" "$H/kubelet.py" --server=https://127.0.0.1:$PORT --token="$TOKEN" \
    --ca="$CFG/pki/apiserver.crt" --cert="$CFG/pki/apiserver.crt" --key="$CFG/pki/apiserver.key" --nodes=node-a,node-b \
    --env=WORKER_LOADER_THREADS=1 --env=MOTO=1
  wait_for 60 "$BIN/kubectl" get node node-a
  "$BIN/kubectl" apply -f - >/dev/null <<'EOT'
apiVersion: v1
kind: Namespace
metadata: {name: storage}
---
apiVersion: v1
kind: Service
metadata: {name: minio, namespace: storage}
spec: {clusterIP: None, ports: [{name: s3, port: 9000}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: minio-1, namespace: storage, labels: {kubernetes.io/service-name: minio}}
addressType: IPv4
ports: [{name: s3, port: 9000}]
endpoints: [{addresses: [198.18.0.3], conditions: {ready: true}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: minio-2, namespace: storage, labels: {kubernetes.io/service-name: minio}}
addressType: IPv6
ports: [{name: s3, port: 9000}]
endpoints: [{addresses: ["fd00:18::3"], conditions: {ready: true}}]
EOT
  wait_for 60 ip netns exec $FABRIC curl -s http://198.18.0.3:9000/
  AWS_ENDPOINT_URL=http://198.18.0.3:9000 AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret AWS_REGION=us-east-1 \
    ip netns exec $FABRIC "$PY" "$H/seed.py"
  "$BIN/kubectl" get nodes
}

stop() {
  for name in trainer kueue jobset kubelet store scheduler controller-manager apiserver etcd; do
    [ -f "$STATE/$name.pid" ] || continue
    kill "$(cat "$STATE/$name.pid")" 2>/dev/null || true
    rm -f "$STATE/$name.pid"
  done
  sleep 2
  for n in $(ip netns list | awk '/^kp[0-9]+-|^kube-fabric/{print $1}'); do ip netns del "$n"; done
  rm -rf "$STATE/etcd" "$STATE/pods" "$STATE"/control/*
}

case ${1:-all} in
  build) build ;;
  start) start ;;
  stop) stop ;;
  all) build; start ;;
  status) for f in "$STATE"/*.pid; do n=$(basename "$f" .pid); kill -0 "$(cat "$f")" 2>/dev/null && echo "$n runs" || echo "$n DEAD"; done ;;
esac
