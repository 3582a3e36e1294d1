//go:build !linux

package server

// This file lets the package compile where it cannot work: Find says so before any of this
// is called.

import (
	"context"
	"errors"
	"os"
	"syscall"
)

const (
	sigStop = syscall.Signal(0)
	sigCont = syscall.Signal(0)
)

func childAttr() *syscall.SysProcAttr { return nil }

func waitLock(context.Context, *os.File) error { return errors.ErrUnsupported }

func tryLock(*os.File) error { return errors.ErrUnsupported }
