// Package server runs private MariaDB and MySQL servers for tests and benchmarks: real ones,
// each on a data directory of its own, on 127.0.0.1 and on a unix socket, ready within a
// second and gone with the process that started them. They run alone, as primary and replica,
// or as a Galera cluster.
package server

// This file is a server's life: start, kill, pause, stop, start again. Where its program comes
// from is in install.go, its data directory in template.go, what one can ask of it while it
// runs in admin.go, what it is together with others in replica.go and galera.go.

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/lab/loopback"
)

// patience bounds every wait for a server to come up, to stop or to answer an admin.
const patience = 60 * time.Second

// Options are what one server may have that others have not. The zero value is fine.
type Options struct {
	Args []string // more options for the server program; they win over ours
	// Second are more options for the second server of a pair.
	Second []string
	// SemiSync: a commit on the primary of a pair is answered when a replica has it.
	SemiSync bool
	Replicas int  // how many the primary of a pair has; 0 is 1
	TLS      bool // give the server a certificate that TLSConfig trusts
}

// A Server is a private server. Its methods may be called from any goroutine.
type Server struct {
	install *Install
	args    []string
	dir     string   // everything of this server is in it
	lock    *os.File // on dir: tells other test binaries that we live
	port    int
	tls     *tls.Config

	// What a server that is one of several has beyond that, all of which may be nil: arguments
	// that depend on the state of the others, whether it takes part yet, and an environment.
	partArgs func(context.Context) ([]string, error)
	joined   func(context.Context) (bool, error)
	env      []string

	mu   sync.Mutex // guards proc, and makes each change of state whole
	proc *process   // nil if not started or ended by us
}

// Start starts a server and returns when it takes connections. The context bounds the start
// only. End the server with Close.
func Start(ctx context.Context, kind Kind, o Options) (*Server, error) {
	in, template, err := findWithTemplate(ctx, kind)
	if err != nil {
		return nil, err
	}
	s, err := in.furnish(template, o)
	if err != nil {
		return nil, err
	}
	if err := s.startAnywhere(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// findWithTemplate finds a program and a data directory to copy.
func findWithTemplate(ctx context.Context, kind Kind) (in *Install, template string, err error) {
	if in, err = Find(ctx, kind); err == nil {
		template, err = in.template(ctx)
	}
	return in, template, err
}

// furnish makes a server that is ready to be started: its directory, with a copy of the template.
func (in *Install) furnish(template string, o Options) (_ *Server, err error) {
	s := &Server{install: in, args: o.Args}
	if s.dir, s.lock, err = makeDir(); err != nil {
		return nil, err
	}
	if err = copyTree(template, s.data()); err == nil && o.TLS {
		s.tls, err = writeCertificate(s.file("cert.pem"), s.file("key.pem"))
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// startAnywhere starts a new server on a port that is free.
func (s *Server) startAnywhere(ctx context.Context) error {
	// The port is free now and may be taken before the server has it.
	for range 5 {
		l, err := loopback.ListenForServer()
		if err != nil {
			return err
		}
		s.port = loopback.Port(l)
		l.Close()
		if err := s.start(ctx); err == nil || !strings.Contains(s.Log(), "Do you already have another") {
			return err
		}
		os.Remove(s.logFile())
	}
	return errors.New("found no free port")
}

// choosePorts finds free ports, all different, for servers that must know each other's.
func choosePorts(ports ...*int) error {
	for _, port := range ports {
		l, err := loopback.ListenForServer()
		if err != nil {
			return err
		}
		defer l.Close()
		*port = loopback.Port(l)
	}
	return nil
}

// Start starts a server that was killed or stopped again, on the same data, port and socket,
// and returns when it takes connections. If it runs, nothing happens.
func (s *Server) Start() error { return s.start(context.Background()) }

// Restart stops the server cleanly, if it runs, and starts it again.
func (s *Server) Restart() error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.Start()
}

func (s *Server) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil && s.proc.running() {
		return nil
	}
	args := append(s.install.quickArgs(),
		"--datadir="+s.data(),
		"--tmpdir="+s.dir,
		"--pid-file="+s.file("pid"),
		"--socket="+s.Socket(),
		"--port="+strconv.Itoa(s.port))
	if s.tls != nil {
		args = append(args, "--ssl-cert="+s.file("cert.pem"), "--ssl-key="+s.file("key.pem"))
	} else if s.Kind() == MariaDB118 {
		args = append(args, "--skip-ssl") // or it makes an RSA key at each start, which takes a second
	}
	if s.partArgs != nil {
		part, err := s.partArgs(ctx)
		if err != nil {
			return err
		}
		args = append(args, part...)
	}
	args = append(args, s.args...)
	// A killed server leaves these behind, and takes them for another's.
	for _, stale := range []string{s.Socket(), s.Socket() + ".lock", s.file("pid")} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if len(s.Socket()) > 100 {
		return fmt.Errorf("the path %s is too long for a unix socket: set TMPDIR to a shorter one", s.Socket())
	}
	log, err := os.OpenFile(s.logFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	if s.proc, err = startProcess(s.install.command(args...), nil, log, s.env...); err != nil {
		return err
	}
	if err := s.awaitReady(ctx); err != nil {
		s.proc.kill()
		return fmt.Errorf("%s does not start: %w\n%s", s.install, err, s.Log())
	}
	return nil
}

// awaitReady waits until the server lets its admin in, and is of use.
func (s *Server) awaitReady(ctx context.Context) error {
	return poll(ctx, func() (bool, error) {
		if s.joined != nil {
			if ok, err := s.joined(ctx); ok || err != nil {
				return ok, err
			}
		} else if s.ping(ctx) == nil {
			return true, nil
		}
		if !s.proc.running() {
			return false, fmt.Errorf("it ended: %v", s.proc.err)
		}
		return false, nil
	})
}

// poll calls done until it is, or fails, or patience ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Kill ends the server as a crash does (SIGKILL) and returns when the process is gone.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		s.proc.kill()
		s.proc = nil
	}
	return nil
}

// Stop ends the server as an administrator does and returns when the process is gone. A
// paused one is resumed for it.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.proc
	s.proc = nil
	if p == nil || !p.running() {
		return nil
	}
	p.os.Signal(sigCont)
	p.os.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(patience):
		p.kill()
		return fmt.Errorf("%s did not stop in %v and was killed", s.install, patience)
	}
}

// Pause freezes the server: the kernel goes on taking connections and data for it, but
// nothing answers.
func (s *Server) Pause() error { return s.signal(sigStop) }

// Resume ends a Pause.
func (s *Server) Resume() error { return s.signal(sigCont) }

func (s *Server) signal(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return os.ErrProcessDone
	}
	return s.proc.os.Signal(sig)
}

// Close kills the server and removes all that it wrote. It may be called more than once.
func (s *Server) Close() error {
	s.Kill()
	err := os.RemoveAll(s.dir)
	s.lock.Close()
	return err
}

// Kind is the kind the server was started as.
func (s *Server) Kind() Kind { return s.install.Kind }

// Version is the server's version as its program tells it.
func (s *Server) Version() string { return s.install.Version }

// Addr is the server's host:port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Socket is the path of the server's unix socket.
func (s *Server) Socket() string { return s.file("sock") }

// DSN is for the driver: User on Database over TCP.
func (s *Server) DSN() string { return s.DSNVia(s.Addr()) }

// DSNVia is DSN with another address, such as a proxy's.
func (s *Server) DSNVia(addr string) string { return dsn(User, Password, "tcp", addr) }

// SocketDSN is DSN over the unix socket.
func (s *Server) SocketDSN() string { return dsn(User, Password, "unix", s.Socket()) }

// AppDSN is DSNVia for the ordinary AppUser.
func (s *Server) AppDSN(addr string) string { return dsn(AppUser, AppPassword, "tcp", addr) }

func dsn(user, password, network, addr string) string {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.Net, cfg.Addr, cfg.DBName = user, password, network, addr, Database
	return cfg.FormatDSN()
}

// TLSConfig is for a client of a server started with Options.TLS; otherwise it is nil.
func (s *Server) TLSConfig() *tls.Config { return s.tls.Clone() }

// Log is the end of the server's error log, for the output of a test that failed.
func (s *Server) Log() string { return tail(s.logFile()) }

func tail(path string) string {
	const lines = 40
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

func (s *Server) file(name string) string { return filepath.Join(s.dir, name) }
func (s *Server) data() string            { return s.file("data") }
func (s *Server) logFile() string         { return s.file("error.log") }

const dirPrefix = "livepool-server-"

// makeDir makes a server's directory and locks it. It also removes those of test binaries
// that were killed: a server dies with its parent, but its files cannot.
func makeDir() (string, *os.File, error) {
	sweep()
	for {
		dir, err := os.MkdirTemp("", dirPrefix)
		if err != nil {
			return "", nil, err
		}
		lock, err := lockDir(dir)
		if !errors.Is(err, os.ErrNotExist) {
			return dir, lock, err
		}
		// Another's sweep came between the two.
	}
}

func lockDir(dir string) (*os.File, error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err = waitLock(context.Background(), lock); err == nil {
		_, err = os.Stat(dir)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	for _, dir := range dirs {
		if f, err := os.Open(dir); err == nil {
			if tryLock(f) == nil {
				os.RemoveAll(dir)
			}
			f.Close()
		}
	}
}
