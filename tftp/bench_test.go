package tftp

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/places"
	"rackstrap/internal/testenv"
)

const (
	benchFileEnv = "RACKSTRAP_TFTP_BENCH_FILE" // what TestServeForBench serves
	benchLoadEnv = "RACKSTRAP_TFTP_BENCH_LOAD" // for TestLoadForBench: port, block size, clients
	benchPort    = 1069
	benchBytes   = 64 << 20 // of all clients together, in one round
)

// BenchmarkServers compares with tftpd-hpa, over an Ethernet between namespaces with an MTU of 1500: the rate,
// and our processor time for each MB, which other work on the machine disturbs less. The two take turns: run
// it with `-benchtime 5x` or more. Server and load have a processor each: else 32 clients take the servers'
// time, and a server of 32 processes gets a larger share of it than one of few threads.
func BenchmarkServers(b *testing.B) {
	hpa := testenv.NeedTool(b, "in.tftpd", "taskset")
	server, client := spaces(b)
	dir := b.TempDir()
	require.NoError(b, os.Chmod(dir, 0o755))
	require.NoError(b, os.Chmod(filepath.Dir(dir), 0o755))
	file := filepath.Join(dir, "file")
	require.NoError(b, os.WriteFile(file, noise(benchBytes), 0o644))
	servers := []struct {
		name  string
		port  int
		start func() *exec.Cmd
	}{
		{"rackstrap", benchPort, func() *exec.Cmd {
			return again(b.Context(), b, server, "TestServeForBench", benchFileEnv+"="+file)
		}},
		{"tftpd-hpa", 69, func() *exec.Cmd {
			return exec.CommandContext(b.Context(), "ip", "netns", "exec", server, hpa, "-L", "-a", serverAddress+":69", "-s", "-u", "root", dir)
		}},
	}
	for _, clients := range []int{1, 32} {
		for _, block := range []int{512, 1468} {
			b.Run(fmt.Sprintf("blksize=%d/clients=%d", block, clients), func(b *testing.B) {
				total, cpu := map[string]time.Duration{}, map[string]time.Duration{}
				for range b.N {
					for _, s := range servers {
						run := onProcessor(1, s.start())
						require.NoError(b, run.Start())
						time.Sleep(200 * time.Millisecond) // tftpd-hpa says nothing when it is there
						out, err := onProcessor(0, again(b.Context(), b, client, "TestLoadForBench",
							fmt.Sprintf("%s=%d %d %d", benchLoadEnv, s.port, block, clients))).CombinedOutput()
						require.NoError(b, err, "%s", out)
						run.Process.Signal(syscall.SIGTERM)
						run.Wait()
						_, after, ok := strings.Cut(string(out), "took ")
						require.True(b, ok, "%s", out)
						took, err := time.ParseDuration(strings.Fields(after)[0])
						require.NoError(b, err)
						total[s.name] += took
						cpu[s.name] += run.ProcessState.UserTime() + run.ProcessState.SystemTime()
					}
				}
				megabytes := float64(loadBytes(clients)) / 1e6 * float64(b.N)
				b.ReportMetric(0, "ns/op")
				for _, s := range servers {
					b.ReportMetric(megabytes/total[s.name].Seconds(), s.name+"-MB/s")
				}
				// Only ours: tftpd-hpa's children end unwaited for, and the system does not tell what they took.
				b.ReportMetric(float64(cpu["rackstrap"].Milliseconds())/megabytes, "rackstrap-cpu-ms/MB")
				b.ReportMetric(total["tftpd-hpa"].Seconds()/total["rackstrap"].Seconds(), "ratio")
			})
		}
	}
}

// onProcessor keeps a program to one processor.
func onProcessor(n int, cmd *exec.Cmd) *exec.Cmd {
	cmd.Args = append([]string{"taskset", "-c", strconv.Itoa(n), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/usr/bin/taskset"
	return cmd
}

// loadBytes is what so many clients fetch in a round, together.
func loadBytes(clients int) int {
	if clients == 1 {
		return benchBytes / 4
	}
	return benchBytes
}

// TestServeForBench serves until it is told to end.
func TestServeForBench(t *testing.T) {
	name := os.Getenv(benchFileEnv)
	if name == "" {
		return // not a test of its own
	}
	content, err := os.ReadFile(name)
	require.NoError(t, err)
	s, err := Listen(Options{Rack: &rack{}, Files: files{"file": content}, Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Address: netip.MustParseAddr(serverAddress), Interface: serverNIC, Port: benchPort, Places: manyEach})
	require.NoError(t, err)
	ctx, cancel := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer cancel()
	require.NoError(t, s.Run(ctx))
}

// TestLoadForBench fetches with so many clients at once, each in a thread and with as few system calls as can
// be: what is measured is the server.
func TestLoadForBench(t *testing.T) {
	load := os.Getenv(benchLoadEnv)
	if load == "" {
		return // not a test of its own
	}
	var port, block, clients int
	_, err := fmt.Sscan(load, &port, &block, &clients)
	require.NoError(t, err)
	var all sync.WaitGroup
	begin := time.Now()
	for range clients {
		all.Go(func() {
			if err := pull(port, block, loadBytes(clients)/clients); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	fmt.Println("took", time.Since(begin))
}

// pull fetches so many bytes of the file, and aborts.
func pull(port, block, size int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 3})
	to := &syscall.SockaddrInet4{Addr: netip.MustParseAddr(serverAddress).As4(), Port: port}
	if err := syscall.Sendto(fd, rrq("file", "octet", "blksize", strconv.Itoa(block)), 0, to); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	connected := false
	for got := 0; got < size; {
		n, from, err := syscall.Recvfrom(fd, buf, 0)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("after %d bytes: %w", got, err)
		case !connected:
			if err := syscall.Connect(fd, from); err != nil {
				return err
			}
			connected = true
		}
		ack := []byte{0, opACK, 0, 0}
		switch buf[1] {
		case opOACK:
		case opDATA:
			binary.BigEndian.PutUint16(ack[2:], binary.BigEndian.Uint16(buf[2:]))
			got += n - 4
		default:
			return fmt.Errorf("%q", buf[:n])
		}
		if _, err := syscall.Write(fd, ack); err != nil {
			return err
		}
	}
	_, err = syscall.Write(fd, []byte("\x00\x05\x00\x00enough\x00"))
	return err
}

// manyEach lets one address have many transfers.
var manyEach = places.Limits{Total: 512, Each: 64, Strangers: 64, StrangersEach: 64}
