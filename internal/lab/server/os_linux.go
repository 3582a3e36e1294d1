package server

// This file holds what of the operating system the package needs beyond the portable: file
// locks, and children that die with their parent.

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

const (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
)

// childAttr gives a child a process group of its own, so that an interrupt typed at the
// terminal goes to the test alone, and has it killed when its parent thread ends.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// waitLock locks an open file or directory, waiting for whoever has it locked. The lock ends
// when the file is closed, and with the process in any case.
func waitLock(ctx context.Context, f *os.File) error {
	tick := time.NewTicker(20 * time.Millisecond) // flock itself cannot be cancelled
	defer tick.Stop()
	for {
		if err := tryLock(f); !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tryLock locks an open file or directory, or fails with EWOULDBLOCK.
func tryLock(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
