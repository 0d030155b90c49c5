package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"rackstrap/firstboot/api"
	"rackstrap/internal/httpcall"
	"rackstrap/internal/plain"
)

// kubelet sees the images of this namespace of containerd alone.
const containerdNamespace = "k8s.io"

var sha256Form = regexp.MustCompile(`^[0-9a-f]{64}$`)

// importImages brings the archives of the work into containerd, as far as their images are not there yet.
func (j *job) importImages(ctx context.Context) error {
	if len(j.work.Images) == 0 {
		return nil
	}
	have, err := j.imagesThere(ctx)
	if err != nil {
		return err
	}
	for i, image := range j.work.Images {
		if len(image.Names) > 0 && len(absent(image.Names, have)) == 0 {
			continue
		}
		name := strings.Join(image.Names, ", ")
		j.tell(fmt.Sprintf("importing images, archive %d of %d: %s", i+1, len(j.work.Images), name), 100*i/len(j.work.Images))
		if err := j.importImage(ctx, image); err != nil {
			return fmt.Errorf("images %s: %w", name, err)
		}
	}
	return nil
}

func (j *job) importImage(ctx context.Context, image api.Image) error {
	archive, err := j.download(ctx, image)
	if err != nil {
		return err
	}
	defer os.Remove(archive)
	_, err = j.run(ctx, j.session, "ctr", "-n", containerdNamespace, "images", "import", archive)
	return err
}

// download fetches an archive, continues where an earlier try ended, and believes its SHA-256 alone.
func (j *job) download(ctx context.Context, image api.Image) (string, error) {
	target, err := url.Parse(image.URL)
	if err != nil || target.Scheme != "http" && target.Scheme != "https" || !sha256Form.MatchString(image.SHA256) || image.Size <= 0 {
		return "", fatalf("%q is not an archive that can be fetched", plain.Line(image.URL, 200))
	}
	dir := j.own("images")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, image.SHA256+".tar")
	pause := j.pause()
	for try := 1; ; try++ {
		err := j.fetch(ctx, image, path)
		if err == nil {
			return path, nil
		}
		j.session.note("%s: try %d: %v", image.URL, try, err)
		var gone *StatusError
		if try == 8 || ctx.Err() != nil || errors.As(err, &gone) && gone.Status/100 == 4 && gone.Status != http.StatusTooManyRequests {
			os.Remove(path)
			return "", err
		}
		if err := sleep(ctx, jitter(pause)); err != nil {
			return "", err
		}
		pause = min(2*pause, maxPause)
	}
}

// fetch is one try. What is there already is read for the digest, the rest is asked for by Range.
func (j *job) fetch(ctx context.Context, image api.Image, path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	there, err := io.Copy(sum, file)
	if err != nil {
		return err
	}
	if there > image.Size {
		there = 0
	}
	if there < image.Size {
		if err := j.fetchRest(ctx, image, file, there, sum); err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != image.SHA256 {
		file.Truncate(0) // whatever it was: from the beginning
		return fmt.Errorf("%s has the SHA-256 %s, not %s", image.URL, got, image.SHA256)
	}
	return file.Sync()
}

func (j *job) fetchRest(ctx context.Context, image api.Image, file *os.File, there int64, sum hash.Hash) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, image.URL, nil)
	if err != nil {
		return err
	}
	if there > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(there, 10)+"-")
	}
	resp, err := archives.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusPartialContent:
		if begins, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "-"); begins != strconv.FormatInt(there, 10) {
			return fmt.Errorf("%s: asked for byte %d, got %q", image.URL, there, resp.Header.Get("Content-Range"))
		}
	case http.StatusOK:
		there = 0
		sum.Reset()
	default:
		return &StatusError{Call: image.URL, Status: resp.StatusCode, Text: http.StatusText(resp.StatusCode)}
	}
	if err := file.Truncate(there); err != nil {
		return err
	}
	if _, err := file.Seek(there, io.SeekStart); err != nil {
		return err
	}
	n, err := io.Copy(io.MultiWriter(file, sum), io.LimitReader(resp.Body, image.Size-there+1))
	switch {
	case err != nil:
		return err
	case there+n < image.Size:
		return fmt.Errorf("%s ended after %d of %d bytes", image.URL, there+n, image.Size)
	case there+n > image.Size:
		file.Truncate(0)
		return fmt.Errorf("%s is larger than the %d bytes announced", image.URL, image.Size)
	}
	return nil
}

// archives fetches from the boot plane, in the rack: no proxy, no redirects.
var archives = httpcall.Client(&http.Transport{ResponseHeaderTimeout: time.Minute, IdleConnTimeout: 30 * time.Second}, 0)

// imagesThere is what containerd has, by name.
func (j *job) imagesThere(ctx context.Context) ([]string, error) {
	out, err := j.run(ctx, j.session, "ctr", "-n", containerdNamespace, "images", "ls", "-q")
	if err != nil {
		return nil, err
	}
	return words(out), nil
}

// missingImages is what kubeadm needs for its configuration and containerd has not.
func (j *job) missingImages(ctx context.Context, config string) ([]string, error) {
	out, err := j.run(ctx, j.session, "kubeadm", "config", "images", "list", "--config", config)
	if err != nil {
		return nil, fatal(err)
	}
	have, err := j.imagesThere(ctx)
	if err != nil {
		return nil, err
	}
	return absent(words(out), have), nil
}

// absent lists those of the wanted images that are not there.
func absent(wanted, have []string) []string {
	var missing []string
	for _, name := range wanted {
		if !slices.Contains(have, fullName(name)) && !slices.Contains(have, name) {
			missing = append(missing, name)
		}
	}
	return missing
}

// fullName is the form under which containerd keeps an image: "nginx" is docker.io/library/nginx:latest.
func fullName(name string) string {
	host, rest, found := strings.Cut(name, "/")
	switch {
	case !found:
		name = "docker.io/library/" + name
	case !strings.ContainsAny(host, ".:") && host != "localhost":
		name = "docker.io/" + host + "/" + rest
	}
	if base := name[strings.LastIndexByte(name, '/')+1:]; !strings.ContainsAny(base, ":@") {
		name += ":latest"
	}
	return name
}

// words are the lines of a list that hold one word each; others are notices.
func words(text string) []string {
	var list []string
	for line := range strings.SplitSeq(text, "\n") {
		if fields := strings.Fields(line); len(fields) == 1 {
			list = append(list, fields[0])
		}
	}
	return list
}
