package agent

import (
	"errors"

	"rackstrap/firstboot/api"
	"rackstrap/internal/efiboot"
	"rackstrap/internal/plain"
)

// BootMemory is the file with the boot entry that is to be the first one.
const BootMemory = defaultState + "/boot-order"

func (h *Host) firmware() efiboot.Host { return efiboot.Host{Root: h.o.Root, Memory: BootMemory} }

// boot looks what the firmware boots first.
func (h *Host) boot() api.Boot {
	switch r, err := h.firmware().Look(); {
	case errors.Is(err, efiboot.ErrBIOS):
		return api.Boot{Firmware: api.BIOS}
	case err != nil:
		return api.Boot{Firmware: api.UEFI, Error: plain.Line(err.Error(), 300)}
	default:
		return api.Boot{Firmware: api.UEFI, NetworkFirst: r.NetworkFirst, First: plain.Line(r.First, 100)}
	}
}
