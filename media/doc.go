// Package media serves installation media: the file tree inside an ISO 9660 image as an fs.FS, read
// straight from the image file, without mounting or unpacking it; or, with the same interface, a tree
// that was already unpacked into a directory.
//
// An [Image] is indexed once, when it is opened: every directory is read, every path is known with the
// byte ranges of its content, and from then on a lookup touches no disk and a read is one pread(2) of the
// image file. The index is immutable, so an Image is safe for concurrent use.
//
// Which names an image shows is decided once, in this order:
//
//	Rock Ridge  (SUSP 1.12, RRIP 1.12)  POSIX names, modes, times, symbolic links, deep directories
//	Joliet                              UCS-2 names; no links
//	ISO 9660    (ECMA-119)              upper-case names; ";1" and a trailing "." are dropped
//
// Lookups are case-sensitive first; where nothing matches, a single name that differs only in case does.
// An image without Rock Ridge can so be asked for "images/pxeboot/vmlinuz".
//
// # What a broken image does
//
// An image that is truncated, damaged or hostile ends in a [*CorruptError] that names the byte offset,
// when it is opened, never in a wrong file later. The limits in limits.go bound what any image can cost.
//
// What is refused although a standard allows it, because no installation medium uses it: interleaved
// files (ECMA-119 6.4.3), files spread over several volumes, and zisofs compression. They end in an error
// that wraps [errors.ErrUnsupported].
package media
