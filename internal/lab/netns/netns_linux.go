package netns

// This file asks the kernel for a network and for its loopback interface to go up and down,
// by system calls, so that no tool is needed.

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"
)

// inside is whether this process is in a network of its own. Without it the interface is not
// touched: outside it is the machine's.
var inside bool

// current names the network this process is in.
func current() string {
	name, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return "unknown"
	}
	return name
}

// enter makes sure that we are in another network than outside and brings its interface up.
func enter(outside string) error {
	if now := current(); now == outside || now == "unknown" || outside == "unknown" {
		return fmt.Errorf("still in the network of the machine, %s", now)
	}
	inside = true
	return setLoopback(true)
}

// runInside runs the command in a new network and returns its output. An error without any
// output means that there is no such network to be had.
func runInside(command func() *exec.Cmd) ([]byte, error) {
	// The kernel kills the child when the thread that started it ends, so this one stays ours.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	id := func(host int) []syscall.SysProcIDMap { return []syscall.SysProcIDMap{{HostID: host, Size: 1}} }
	var errs []error
	for _, attr := range []*syscall.SysProcAttr{
		{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: id(os.Geteuid()), GidMappings: id(os.Getegid())},
		{Cloneflags: syscall.CLONE_NEWNET}, // root may do this where user namespaces are switched off
	} {
		attr.Pdeathsig = syscall.SIGKILL
		cmd := command()
		cmd.SysProcAttr = attr
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			errs = append(errs, err)
			continue
		}
		err := cmd.Wait()
		return out.Bytes(), err
	}
	return nil, errors.Join(errs...)
}

// setLoopback brings the interface lo up or down.
func setLoopback(up bool) error {
	if !inside {
		return errors.New("netns: the loopback interface of the machine is not ours to touch")
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer syscall.Close(fd)
	req := struct { // struct ifreq
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{name: [syscall.IFNAMSIZ]byte{'l', 'o'}}
	ioctl := func(op uintptr) error {
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), op, uintptr(unsafe.Pointer(&req))); e != 0 {
			return os.NewSyscallError("ioctl lo", e)
		}
		return nil
	}
	if err := ioctl(syscall.SIOCGIFFLAGS); err != nil {
		return err
	}
	if up {
		req.flags |= syscall.IFF_UP
	} else {
		req.flags &^= syscall.IFF_UP
	}
	return ioctl(syscall.SIOCSIFFLAGS)
}
