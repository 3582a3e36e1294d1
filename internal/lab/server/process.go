package server

// This file runs one child process and reaps it. What the process is, it does not know.

import (
	"io"
	"os"
	"os/exec"
	"runtime"
)

type process struct {
	os   *os.Process
	done chan struct{} // closed when the process has ended and is reaped
	err  error         // how it ended; to be read after done
}

// startProcess starts argv with its output in log, and with env added to our environment.
//
// The child shall die with us, however we die, so the kernel is asked to kill it when its
// parent ends. For the kernel the parent is the thread that forked, and Go ends threads as it
// likes: so that thread is held, doing nothing but wait for the child, for as long as it lives.
func startProcess(argv []string, stdin io.Reader, log *os.File, env ...string) (*process, error) {
	p := &process{done: make(chan struct{})}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, log, log
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LD_PRELOAD=", "LD_LIBRARY_PATH=")
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = childAttr()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and no Unlock: the thread ends with this goroutine
		err := cmd.Start()
		p.os = cmd.Process
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// running reports whether the process has not ended yet.
func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends the process at once and returns when it is reaped.
func (p *process) kill() {
	p.os.Kill() // an error means that it has ended, which is what is wanted
	<-p.done
}
