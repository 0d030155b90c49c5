package rpm_test

import (
	"bytes"
	"testing"

	"github.com/google/rpmpack"
	"github.com/stretchr/testify/require"

	"rackstrap/internal/rpm"
)

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		older, newer string
	}{
		{"1.0", "1.1"}, {"1.9", "1.10"}, {"1.0", "1.0.1"}, {"1.0a", "1.0b"}, {"1.0~rc1", "1.0"}, {"a", "1"}, {"1.0rc", "1.0.1"},
		{"28.1", "028.2"}, {"", "1"}, {"1.28.2", "1.28.10"}, {"1.6.33-3.1", "1.6.33-3.2"},
	} {
		require.Negative(t, rpm.Compare(c.older, c.newer), "%s < %s", c.older, c.newer)
		require.Positive(t, rpm.Compare(c.newer, c.older), "%s > %s", c.newer, c.older)
	}
	for _, same := range [][2]string{{"1.0", "1.0"}, {"1_0", "1.0"}, {"01", "1"}, {"", "0"}} {
		require.Zero(t, rpm.Compare(same[0], same[1]), "%q", same)
	}
}

func TestReadHeader(t *testing.T) {
	made, err := rpmpack.NewRPM(rpmpack.RPMMetaData{Name: "bash", Version: "4.2.46", Release: "34.el7", Epoch: 3, Arch: "x86_64", Compressor: "xz"})
	require.NoError(t, err)
	require.NoError(t, made.Requires.Set("rpmlib(RichDependencies)"))
	made.AddFile(rpmpack.RPMFile{Name: "/usr/bin/bash", Body: []byte("bash"), Mode: 0o100755})
	var file bytes.Buffer
	require.NoError(t, made.Write(&file))
	h, err := rpm.ReadHeader(bytes.NewReader(file.Bytes()))
	require.NoError(t, err)
	require.Subset(t, h.Features, []string{"RichDependencies"})
	h.Features = nil
	require.Equal(t, rpm.Header{Name: "bash", Epoch: "3", Version: "4.2.46", Release: "34.el7", Arch: "x86_64", Payload: "xz"}, h)

	for n := 0; n < file.Len(); n += 7 { // a file that breaks off
		if _, err := rpm.ReadHeader(bytes.NewReader(file.Bytes()[:n])); err == nil {
			require.Greater(t, n, 500)
		}
	}
	_, err = rpm.ReadHeader(bytes.NewReader([]byte("<html>not found</html>")))
	require.EqualError(t, err, "is no RPM package")
}

func FuzzReadHeader(f *testing.F) {
	made, err := rpmpack.NewRPM(rpmpack.RPMMetaData{Name: "a", Version: "1", Release: "1", Arch: "noarch"})
	require.NoError(f, err)
	var file bytes.Buffer
	require.NoError(f, made.Write(&file))
	f.Add(file.Bytes())
	f.Fuzz(func(t *testing.T, text []byte) {
		if h, err := rpm.ReadHeader(bytes.NewReader(text)); err == nil && h.Name == "" {
			t.Fatal("a package without a name")
		}
	})
}
