//go:build !linux

package wire

import (
	"syscall"
	"time"
)

// setUserTimeout does nothing here: only TCP keep-alive notices a vanished peer.
func setUserTimeout(string, syscall.RawConn, time.Duration) error { return nil }
