//go:build !linux

package netns

// This file lets the package compile where it cannot work.

import (
	"errors"
	"os/exec"
)

var errLinux = errors.New("network namespaces need Linux")

func current() string                            { return "" }
func enter(string) error                         { return errLinux }
func runInside(func() *exec.Cmd) ([]byte, error) { return nil, errLinux }
func setLoopback(bool) error                     { return errLinux }
