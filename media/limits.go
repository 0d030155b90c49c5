package media

// Bounds on what an image may make the reader do. An honest image is far from every one of them: CentOS
// 7.9 "Everything" has about 10,000 entries, four levels deep, and 3 MiB of directories.
const (
	maxDescriptors   = 64        // volume descriptors before the terminator
	maxEntries       = 1 << 20   // directory records in the whole image
	maxDirectory     = 64 << 20  // bytes of one directory
	maxMetadata      = 128 << 20 // bytes of all directories and continuation areas together
	maxDepth         = 256       // directories below one another
	maxName          = 1024      // bytes of one name, as UTF-8
	maxTarget        = 4096      // bytes of the target of a symbolic link (PATH_MAX)
	maxContinuations = 32        // continuation areas (SUSP "CE") chained from one directory record
	maxContinuation  = 64 << 10  // bytes of one continuation area
	maxLinks         = 40        // symbolic links followed in one lookup, as Linux does
	maxTreeInfo      = 1 << 20   // bytes of a .treeinfo file
)
