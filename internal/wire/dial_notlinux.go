//go:build !linux

package wire

import (
	"syscall"
	"time"
)

// setUserTimeout: TCP keep-alive alone notices a vanished peer here.
func setUserTimeout(string, syscall.RawConn, time.Duration) error { return nil }
