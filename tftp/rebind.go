package tftp

import (
	"fmt"
	"io"
	"net"
	"reflect"
	"unsafe"
)

// rebind gives a transfer of pin/tftp the socket that it shall use, and closes the one that it had.
//
// pin/tftp v3.2.0 opens the socket of a transfer on the wildcard address unless it reads port 69 itself,
// from a bare *net.UDPConn; then no PacketConn can stand in front to put requests right. A wildcard socket
// answers from the address that the route prefers, and clients drop what does not come from the address
// they asked: a second address on the NIC, or a virtual one, would not work. It also keeps the socket to
// itself, so that a transfer could neither be ended from outside nor end with an error code other than 1.
// Its single-port mode writes through our PacketConn, but is slower and has races.
//
// So the one private field that holds the socket is set. The types are checked: should a later version look
// different, every transfer fails with this error, and the tests with them.
func rebind(transfer io.ReaderFrom, conn *net.UDPConn) error {
	field, err := socketField(transfer)
	if err != nil {
		return fmt.Errorf("pin/tftp is not the version that this server was written for: %w", err)
	}
	old := *field
	*field = conn
	return old.Close()
}

// socketField finds the field transfer.conn.conn.
func socketField(transfer any) (**net.UDPConn, error) {
	v := reflect.ValueOf(transfer) // *sender
	for _, step := range []string{"transfer", "transfer.conn"} {
		for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct {
			return nil, fmt.Errorf("%s is no struct", step)
		}
		if v = v.FieldByName("conn"); !v.IsValid() {
			return nil, fmt.Errorf("%s has no field conn", step)
		}
	}
	if v.Type() != reflect.TypeFor[*net.UDPConn]() || !v.CanAddr() || v.IsNil() {
		return nil, fmt.Errorf("transfer.conn.conn is a %s", v.Type())
	}
	return (**net.UDPConn)(unsafe.Pointer(v.UnsafeAddr())), nil
}
