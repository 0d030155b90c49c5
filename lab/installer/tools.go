package installer

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// programDir is where the program and its other names lie, in the installer's system and in the installed one.
const programDir = "/rackstrap-lab"

// tools are the programs that this one stands in for, by the name that it is called by.
var tools = map[string]func(ctx context.Context, args []string, out, complaints io.Writer) int{
	"yum":     runYum,
	"lsblk":   runLsblk,
	"udevadm": runUdevadm,

	"systemctl": runSystemctl,
	"tmux":      runTmux,
}

// installerTools holds what takes the place of programs in the installer's own system, and directoryTools what shadows,
// while a directory is installed into, the programs that would show the host's disks.
const (
	installerTools = programDir + "/installer"
	directoryTools = programDir + "/directory"
)

// linkTools makes links to this program.
func (s system) linkTools(dir string, names ...string) error {
	if err := os.MkdirAll(s.path(dir), 0o755); err != nil {
		return err
	}
	for _, name := range names {
		if err := link(programDir+"/rackstrap", filepath.Join(s.path(dir), name)); err != nil {
			return err
		}
	}
	return nil
}

// runSystemctl reboots the machine, as `systemctl --force --force reboot` does: by the system call alone. For a directory
// that ends the PID namespace (pid_namespaces(7)), never the host. Everything else is the real program's.
func runSystemctl(ctx context.Context, args []string, out, complaints io.Writer) int {
	if !slices.Contains(args, "reboot") {
		cmd := exec.CommandContext(ctx, "/usr/bin/systemctl", args...)
		cmd.Stdout, cmd.Stderr = out, complaints
		if err := cmd.Run(); err != nil {
			return 1
		}
		return 0
	}
	if !slices.Equal(args, []string{"--force", "--force", "reboot"}) {
		fmt.Fprintln(complaints, "systemctl: the stand-in knows `--force --force reboot`")
		return 1
	}
	if err := Reboot.End(); err != nil {
		fmt.Fprintln(complaints, err)
		return 1
	}
	return 0
}

// What tmux knows of Anaconda's pane.
const (
	paneText = "/run/rackstrap-lab-console" // what it has printed
	paneDead = "/run/rackstrap-lab-ended"   // there once the process has ended
)

// runTmux knows two questions about Anaconda's pane.
func runTmux(_ context.Context, args []string, out, complaints io.Writer) int {
	switch strings.Join(args, " ") {
	case "list-panes -t anaconda:main -F #{pane_dead}":
		dead := 0
		if _, err := os.Stat(paneDead); err == nil {
			dead = 1
		}
		fmt.Fprintln(out, dead)
		return 0
	case "capture-pane -p -t anaconda:main":
		text, _ := os.ReadFile(paneText)
		out.Write(text)
		return 0
	}
	fmt.Fprintf(complaints, "tmux: the stand-in does not know: %s\n", strings.Join(args, " "))
	return 1
}

// Tool runs one of the stand-ins if the program was called by its name (argv[0]), as `yum` in the lab's systems
// is a link to the program. It tells whether that was so, and the exit status.
func Tool(ctx context.Context, argv []string) (status int, called bool) {
	if len(argv) == 0 {
		return 0, false
	}
	tool, called := tools[filepath.Base(argv[0])]
	if !called {
		return 0, false
	}
	return tool(ctx, argv[1:], os.Stdout, os.Stderr), true
}

// The one disk that a machine has whose root is a directory.
const (
	directoryDisk     = "sda"
	directoryDiskSize = 20 << 30
)

// runLsblk shows the disk of a machine that has none, in the forms in which the kickstart asks.
func runLsblk(_ context.Context, args []string, out, complaints io.Writer) int {
	columns := []string{"NAME", "SIZE", "TYPE"}
	header, bytes := true, false
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "--bytes", "-b":
			bytes = true
		case "--noheadings", "-n":
			header = false
		case "--nodeps", "-d", "--raw", "-r":
		case "--output", "-o":
			if i++; i < len(args) {
				columns = strings.Split(strings.ToUpper(args[i]), ",")
				continue
			}
			fallthrough
		default:
			fmt.Fprintf(complaints, "lsblk: the stand-in knows no option %s\n", args[min(i, len(args)-1)])
			return 1
		}
	}
	size := fmt.Sprint(directoryDiskSize>>30, "G")
	if bytes {
		size = fmt.Sprint(directoryDiskSize)
	}
	values := map[string]string{"NAME": directoryDisk, "SIZE": size, "TYPE": "disk", "RM": "0", "RO": "0", "MODEL": "DIRECTORY",
		"SERIAL": "directory", "WWN": "", "ROTA": "0", "TRAN": "", "PATH": "/dev/" + directoryDisk}
	var row []string
	for _, c := range columns {
		v, known := values[c]
		if !known {
			fmt.Fprintf(complaints, "lsblk: unknown column: %s\n", c)
			return 1
		}
		row = append(row, v)
	}
	if header {
		fmt.Fprintln(out, strings.Join(columns, " "))
	}
	fmt.Fprintln(out, strings.Join(row, " "))
	return 0
}

// runUdevadm tells the same disk's properties; everything else about devices is left alone.
func runUdevadm(_ context.Context, args []string, out, complaints io.Writer) int {
	switch {
	case len(args) > 0 && slices.Contains([]string{"settle", "trigger", "control"}, args[0]):
		return 0
	case len(args) > 1 && args[0] == "info" && slices.Contains(args, "--query=property") && slices.Contains(args, "--name=/dev/"+directoryDisk):
		fmt.Fprintf(out, "DEVNAME=/dev/%s\nDEVTYPE=disk\nID_SERIAL=directory\nID_SERIAL_SHORT=directory\n", directoryDisk)
		return 0
	}
	fmt.Fprintf(complaints, "udevadm: the stand-in does not know: %s\n", strings.Join(args, " "))
	return 1
}
