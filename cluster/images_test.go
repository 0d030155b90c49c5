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

// Who waits for somebody else is told what to bring in meanwhile; who is about to get a token is not: that does not keep.
func TestImagesAreOfferedToThoseWhoWait(t *testing.T) {
	r := newRack(t, 2, 2)
	require.NoError(t, r.start())
	all := []api.Image{{URL: "a", Names: []string{"r/etcd:3.5.9-0"}}, {URL: "b", Names: []string{"r/pause:3.9"}}}
	r.c.o.Images = func() []api.Image { return all }
	waiting := func(name string) api.Waiting {
		t.Helper()
		work, waiting, err := r.c.Work(t.Context(), Question{Name: name, Attempt: r.record(name).Attempt})
		require.NoError(t, err)
		require.Nil(t, work)
		return waiting
	}
	for _, name := range []string{"kmaster2", "knode1"} {
		require.NoError(t, r.install(r.agent(name)))
		require.NoError(t, r.step(r.agent(name)))
	}
	require.Equal(t, all, waiting("kmaster2").Meanwhile)
	require.Equal(t, all[1:], waiting("knode1").Meanwhile)

	require.NoError(t, r.install(r.agent("kmaster1")))
	r.until("kmaster1 is Ready", r.ready("kmaster1"))
	require.NoError(t, r.install(r.agent("knode2")))
	require.NoError(t, r.step(r.agent("knode2")))
	late := waiting("knode2")
	require.Contains(t, late.Reason, "mints a token")
	require.Empty(t, late.Meanwhile)
}
