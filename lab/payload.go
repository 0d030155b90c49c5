package lab

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// payload is the kernel and the initrd that the lab's ISO and its planted disks boot.
type payload struct {
	kernel string // path of vmlinuz, signed by Debian
	initrd string // path of initrd.img
	hash   string // of both
}

// preparePayload makes kernel and initrd, or finds them in the cache, where they lie under a hash of what they
// were made of.
func preparePayload(ctx context.Context, cache string) (payload, error) {
	var made payload
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return made, err
	}
	err := lockedFile(ctx, filepath.Join(cache, "cache.lock"), func() error {
		d := debian{cache: cache}
		k, err := d.kernel(ctx)
		if err != nil {
			return err
		}
		busybox, err := d.file(ctx, "busybox-static", "/usr/bin/busybox")
		if err != nil {
			return err
		}
		initrd, err := buildInitrd(ctx, k, busybox)
		if err != nil {
			return fmt.Errorf("initrd: %w", err)
		}
		vmlinuz, err := os.ReadFile(k.image)
		if err != nil {
			return err
		}
		made.hash = hashOf(vmlinuz, initrd)
		dir := filepath.Join(cache, "payload-"+made.hash)
		made.kernel, made.initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for path, content := range map[string][]byte{made.kernel: vmlinuz, made.initrd: initrd} {
			if _, err := os.Stat(path); err == nil {
				continue
			}
			if err := writeFile(path, func(w io.Writer) error { _, err := w.Write(content); return err }); err != nil {
				return err
			}
		}
		return nil
	})
	return made, err
}

// hashOf names content by itself.
func hashOf(parts ...[]byte) string {
	sum := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(sum, "%d:", len(part))
		sum.Write(part)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:8])
}
