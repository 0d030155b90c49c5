//go:build ignore

// bench-repo makes a package repository of 100 MB, and fetches it by many clients at once, for bench-repo.sh:
//
//	go run scripts/bench-repo.go make DIR
//	go run scripts/bench-repo.go medium DIR    (a small installation tree, for any benchmark)
//	go run scripts/bench-repo.go fetch DIR URL CLIENTS
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"rackstrap/internal/repotest"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "make":
		err = repotest.Make("gz", packages()).Write(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "medium":
		err = repotest.Medium().Write(os.Args[2])
	case len(os.Args) == 5 && os.Args[1] == "fetch":
		clients, _ := strconv.Atoi(os.Args[4])
		err = fetch(os.Args[2], strings.TrimSuffix(os.Args[3], "/")+"/", clients)
	default:
		err = errors.New("usage: make DIR | medium DIR | fetch DIR URL CLIENTS")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// packages are of the sizes that a node installs: many small ones, some of tens of megabytes.
func packages() map[string][]byte {
	all := map[string][]byte{}
	for size, n := range map[int]int{100_000: 40, 500_000: 32, 2_500_000: 16, 10_000_000: 4} {
		for i := range n {
			all[fmt.Sprintf("Packages/p%d-%d-1.0-1.x86_64.rpm", size, i)] = repotest.Content(uint64(size+i), size)
		}
	}
	return all
}

// fetch has every client fetch every file once, each in an order of its own, and compares all bytes. It prints
// seconds and bytes.
func fetch(dir, url string, clients int) error {
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		files[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		return err
	}
	var names []string
	total := 0
	for name, text := range files {
		if strings.HasPrefix(name, "Packages/") {
			names = append(names, name)
		}
		total += len(text)
	}
	slices.Sort(names)
	var meta []string
	for name := range files {
		if !strings.HasPrefix(name, "Packages/") && name != "repodata/repomd.xml" {
			meta = append(meta, name)
		}
	}
	errs := make(chan error, clients)
	begun := time.Now()
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{DisableCompression: true}, Timeout: 10 * time.Minute}
			buf := make([]byte, 256<<10)
			order := append([]string{"repodata/repomd.xml"}, meta...)
			for i := range names { // as yum does: metadata first, then packages
				order = append(order, names[(i+c*len(names)/clients)%len(names)])
			}
			for _, name := range order {
				if err := one(client, url+name, files[name], buf); err != nil {
					errs <- fmt.Errorf("%s: %w", name, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	took := time.Since(begun)
	for err := range errs {
		return err
	}
	fmt.Printf("%.2f %d\n", took.Seconds(), total*clients)
	return nil
}

func one(client *http.Client, url string, want, buf []byte) error {
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	for {
		n, err := resp.Body.Read(buf)
		if n > len(want) || !bytes.Equal(buf[:n], want[:n]) {
			return errors.New("wrong bytes")
		}
		want = want[n:]
		switch {
		case errors.Is(err, io.EOF) && len(want) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
}
