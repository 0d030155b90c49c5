package cluster

import (
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
)

func TestWorkersDoNotImportTheControlPlane(t *testing.T) {
	archive := func(names ...string) api.Image { return api.Image{Names: names} }
	kept := []api.Image{
		archive("r/kube-proxy:v1.28.2"), archive(), archive("r/kube-apiserver:v1.28.2", "r/kube-proxy:v1.28.2"),
		archive("docker.io/library/etcd-browser:1"), archive("registry:5000/r/pause:3.9"),
	}
	all := append([]api.Image{archive("r:5000/x/kube-apiserver:v1.28.2"), archive("r/etcd:3.5.9-0"), archive("r/kube-scheduler:v1", "r/kube-controller-manager@sha256:0")}, kept...)
	require.Equal(t, kept, workerImages(all))
	require.Len(t, all, 8, "the list of all is not touched")
	require.NotNil(t, all[0].Names)
}
