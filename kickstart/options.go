package kickstart

// The kernels of option Kernel.
const (
	KernelStock = "stock" // the release's own
	KernelLT    = "lt"    // ELRepo's long-term kernel
	KernelML    = "ml"    // ELRepo's mainline kernel
)

// Options are the keys of an installation that the inventory has no fields for yet. DefaultOptions are the
// plan's choices; of the zero Options only Docker differs.
type Options struct {
	Kernel          string              // of Kernel…; "" is stock
	Docker          bool                // install Docker CE beside containerd
	SELinux         string              // enforcing, permissive, disabled; "" is permissive
	Disk            string              // see ParseDisk; "" is the machine's own Install.Disk
	BootArgs        []string            // kernel arguments of the installed system, after the profile's
	ExtraPackages   []string            // installed last; names, not groups
	PostScripts     []Script            // run last, in this order
	Proxy           string              // URL, for yum, containerd and docker; "" for none
	SandboxImage    string              // "" is the profile's, out of the cluster's image repository
	RegistryMirrors map[string][]string // by registry host: URLs that are tried before it
	RepoKeys        map[string]string   // by repository: URLs of its keys; "none" leaves signatures unchecked
}

// Script is a program that runs in the installed system at the end of the installation. It needs a first
// line with an interpreter (#!).
type Script struct {
	Name string // for the log
	Text string
}

// DefaultOptions are the plan's choices.
func DefaultOptions() Options {
	return Options{Kernel: KernelStock, Docker: true, SELinux: "permissive"}
}
