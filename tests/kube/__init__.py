"""The shipped Kubernetes files on a real control plane: `make kube`."""
