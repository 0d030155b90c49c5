package lab

import (
	"context"
	"log/slog"

	"rackstrap/lab/kube"
)

// kubernetesPrograms finds or builds the programs of Kubernetes.
func kubernetesPrograms(ctx context.Context, cache string, log *slog.Logger) (func(name string) string, error) {
	built, err := kube.Build(ctx, cache, log)
	return built.Path, err
}
