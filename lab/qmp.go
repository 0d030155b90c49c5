package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// qmpTimeout bounds one dialogue with QEMU's monitor.
const qmpTimeout = 20 * time.Second

// dialUnix connects to a socket by way of its directory's descriptor: a socket address holds 107 bytes, and a
// state directory may be deeper than that.
func dialUnix(ctx context.Context, dir, name string) (net.Conn, error) {
	opened, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", opened.Fd(), name))
}

// qmpCommand is one command of the QEMU Machine Protocol.
type qmpCommand struct {
	Execute   string         `json:"execute"`
	Arguments map[string]any `json:"arguments,omitempty"`
}

// qmp runs commands one after the other, until one fails. QEMU serves one client at a time and queues the
// others.
func qmp(ctx context.Context, dir string, commands ...qmpCommand) error {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	conn, err := dialUnix(ctx, dir, qmpSocket)
	if err != nil {
		return fmt.Errorf("monitor: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()

	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	var greeting struct {
		QMP json.RawMessage `json:"QMP"`
	}
	if err := in.Decode(&greeting); err != nil {
		return fmt.Errorf("monitor: no greeting: %w", err)
	}
	if greeting.QMP == nil {
		return errors.New("monitor: the greeting is not QMP's")
	}
	for _, command := range append([]qmpCommand{{Execute: "qmp_capabilities"}}, commands...) {
		if err := out.Encode(command); err != nil {
			return fmt.Errorf("monitor: %w", err)
		}
		if err := awaitReturn(in); err != nil {
			return fmt.Errorf("monitor: %s: %w", command.Execute, err)
		}
	}
	return nil
}

// awaitReturn skips events, which QEMU sends whenever it likes.
func awaitReturn(in *json.Decoder) error {
	for {
		var reply struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Class string `json:"class"`
				Desc  string `json:"desc"`
			} `json:"error"`
		}
		if err := in.Decode(&reply); err != nil {
			return err
		}
		if reply.Error != nil {
			return fmt.Errorf("%s: %s", reply.Error.Class, reply.Error.Desc)
		}
		if reply.Return != nil {
			return nil
		}
	}
}

// Screenshot writes what the machine's screen shows as a PNG file.
func (l *Lab) Screenshot(ctx context.Context, name, pngPath string) error {
	if _, err := l.running(name); err != nil {
		return err
	}
	path, err := filepath.Abs(pngPath)
	if err != nil {
		return err
	}
	err = qmp(ctx, l.machineDir(name), qmpCommand{"screendump", map[string]any{"filename": path, "format": "png"}})
	if err != nil {
		return fmt.Errorf("lab: %s: screenshot: %w", name, err)
	}
	return nil
}
