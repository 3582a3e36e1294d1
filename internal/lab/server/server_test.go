package server_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Logger = &mysql.NopLogger{}
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	t.Cleanup(func() { db.Close() })
	return db
}

func exec1(t *testing.T, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func number(err error) uint16 {
	var my *mysql.MySQLError
	if errors.As(err, &my) {
		return my.Number
	}
	return 0
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestDataAndAddressSurvive(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		db := open(t, s.DSN())
		exec1(t, db, "CREATE TABLE t (id INT PRIMARY KEY)")
		rows := 0
		for _, tt := range []struct {
			name    string
			restart func() error
		}{
			{"Kill and Start", func() error {
				if err := s.Kill(); err != nil {
					return err
				}
				if c, err := net.Dial("tcp", s.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("dialling a killed server: %v, %v", c, err)
				}
				return s.Start()
			}},
			{"Restart", s.Restart},
			{"Kill while paused", func() error { return errors.Join(s.Pause(), s.Kill(), s.Restart()) }},
			{"Stop while paused", func() error { return errors.Join(s.Pause(), s.Stop(), s.Start()) }},
			{"Start while it runs", s.Start},
		} {
			rows++
			exec1(t, db, "INSERT INTO t VALUES (?)", rows)
			addr, socket := s.Addr(), s.Socket()
			begun := time.Now()
			if err := tt.restart(); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			t.Logf("%s: %v", tt.name, time.Since(begun))
			if s.Addr() != addr || s.Socket() != socket {
				t.Errorf("%s: moved from %s, %s to %s, %s", tt.name, addr, socket, s.Addr(), s.Socket())
			}
			db.Close() // a plain pool would fail on its dead connections
			db = open(t, s.DSN())
			var n int
			if err := db.QueryRow("SELECT COUNT(*) FROM t").Scan(&n); err != nil || n != rows {
				t.Errorf("%s: %d rows, %v; want %d", tt.name, n, err, rows)
			}
		}
	})
}

func TestAccounts(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, tt := range []struct {
			name, dsn string
			mayAll    bool
		}{
			{"DSN", s.DSN(), true},
			{"DSNVia", s.DSNVia(s.Addr()), true},
			{"SocketDSN", s.SocketDSN(), true},
			{"AppDSN", s.AppDSN(s.Addr()), false},
		} {
			db := open(t, tt.dsn)
			exec1(t, db, "CREATE TABLE t (id INT)")
			exec1(t, db, "DROP TABLE t")
			var name, version string
			if err := db.QueryRow("SELECT DATABASE(), VERSION()").Scan(&name, &version); err != nil || name != server.Database || !strings.HasPrefix(version, s.Version()) {
				t.Errorf("%s: database %q, version %q, %v; want version %q", tt.name, name, version, err, s.Version())
			}
			_, err := db.Exec("SET GLOBAL max_connections = 201")
			if (err == nil) != tt.mayAll {
				t.Errorf("%s: SET GLOBAL: %v", tt.name, err)
			}
		}
	})
}

func TestAReadOnlyServerRefusesWritesOfAll(t *testing.T) {
	const readOnly = 1290
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE t (id INT)"); err != nil {
			t.Fatal(err)
		}
		for _, on := range []bool{true, false, true, false} {
			if err := s.SetReadOnly(on); err != nil {
				t.Fatal(err)
			}
			for name, dsn := range map[string]string{"livepool": s.DSN(), "app": s.AppDSN(s.Addr())} {
				_, err := open(t, dsn).Exec("INSERT INTO t VALUES (1)")
				if on && number(err) != readOnly || !on && err != nil {
					t.Errorf("%s inserts with read-only %v: %v", name, on, err)
				}
			}
		}
	})
}

func TestAPausedServerIsSilentNotGone(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		db := open(t, s.DSN())
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Pause(); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatalf("dialling a paused server: %v", err)
		}
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("reading from a paused server: %v", err)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if err := conn.PingContext(t.Context()); err != nil {
			t.Errorf("the connection from before: %v", err)
		}
	})
}

func TestProcessesAreThoseOfClientsAndCanBeKilled(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if list, err := s.Processes(); err != nil || len(list) != 0 {
			t.Fatalf("nobody is connected but %+v, %v", list, err)
		}
		db, app := open(t, s.DSN()), open(t, s.AppDSN(s.Addr()))
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var id uint64
		if err := conn.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
			t.Fatal(err)
		}
		asleep := make(chan error, 1)
		go func() {
			_, err := app.Exec("SELECT SLEEP(100) /* long */")
			asleep <- err
		}()
		eventually(t, "the sleep shows", func() bool {
			list, err := s.Processes()
			return err == nil && len(list) == 2 && strings.Contains(list[0].Info+list[1].Info, "/* long */")
		})
		list, err := s.Processes()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if p.ID == id && (p.User != server.User || p.Command != "Sleep" || p.DB != server.Database || !strings.HasPrefix(p.Host, "127.0.0.1:")) {
				t.Errorf("the idle connection shows as %+v", p)
			}
		}
		if err := s.KillConnections(); err != nil {
			t.Fatal(err)
		}
		if err := <-asleep; err == nil {
			t.Error("the killed statement succeeded")
		}
		if err := conn.PingContext(t.Context()); err == nil {
			t.Error("the killed connection answers")
		}
		if list, err := s.Processes(); err != nil || len(list) != 0 {
			t.Errorf("after KillConnections: %+v, %v", list, err)
		}
	})
}

func TestArgsAndGlobals(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		get := func() (n int) {
			if err := s.QueryRow("SELECT @@GLOBAL.wait_timeout", &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := get(); n != 7 {
			t.Errorf("wait_timeout is %d, want 7 as started with", n)
		}
		if err := s.SetGlobal("wait_timeout", 8); err != nil || get() != 8 {
			t.Errorf("wait_timeout is %d, %v; want 8 as set", get(), err)
		}
	}, "--wait_timeout=7")
}

func TestTLS(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			s := servertest.RunOptions(t, kind, server.Options{TLS: true})
			cfg, err := mysql.ParseDSN(s.DSN())
			if err != nil {
				t.Fatal(err)
			}
			cfg.TLS = s.TLSConfig()
			c, err := mysql.NewConnector(cfg)
			if err != nil {
				t.Fatal(err)
			}
			db := sql.OpenDB(c)
			defer db.Close()
			var name, cipher string
			if err := db.QueryRow("SHOW STATUS LIKE 'Ssl_cipher'").Scan(&name, &cipher); err != nil || cipher == "" {
				t.Errorf("cipher %q, %v", cipher, err)
			}
		})
	}
}

func TestAStartThatFailsSaysWhy(t *testing.T) {
	servertest.Run(t, server.MariaDB) // skips where there is none
	_, err := server.Start(t.Context(), server.MariaDB, server.Options{Args: []string{"--no-such-option"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("want the server's own words, got: %v", err)
	}
}

// The kernel kills a child when the thread that started it ends, which is not to be when only
// a goroutine ends.
func TestAServerOutlivesTheThreadThatStartedIt(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // its thread ends with it
			done <- errors.Join(s.Kill(), s.Start())
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		db := open(t, s.DSN())
		for range 20 { // a thread ends a moment after its goroutine
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
}

const envOrphan = "LIVEPOOL_SERVER_ORPHAN"

// TestHelperOrphan is the process that is killed in the next test.
func TestHelperOrphan(t *testing.T) {
	kind := os.Getenv(envOrphan)
	if kind == "" {
		return
	}
	s := servertest.Run(t, server.Kind(kind))
	fmt.Printf("\nsocket %s\n", s.Socket())
	select {}
}

func TestNothingOutlivesATestBinaryThatIsKilled(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			servertest.Run(t, kind).Close() // skips where there is none
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHelperOrphan$")
			cmd.Env = append(os.Environ(), envOrphan+"="+string(kind))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			socket := ""
			for lines := bufio.NewScanner(out); socket == "" && lines.Scan(); {
				socket, _ = strings.CutPrefix(lines.Text(), "socket ")
				if socket == lines.Text() {
					socket = ""
				}
			}
			listening := func() bool {
				c, err := net.Dial("unix", socket)
				if err == nil {
					c.Close()
				}
				return err == nil
			}
			if !listening() {
				t.Fatalf("the helper's server at %q does not listen", socket)
			}
			cmd.Process.Kill()
			cmd.Wait()
			eventually(t, "the server dies", func() bool { return !listening() })
			// The next one to start a server clears away what it left.
			s := servertest.Run(t, kind)
			if _, err := os.Stat(filepath.Dir(socket)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there: %v", filepath.Dir(socket), err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Dir(s.Socket())); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("Close left %s: %v", filepath.Dir(s.Socket()), err)
			}
		})
	}
}

func TestACancelledStartIsNoAnswerForTheNext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := server.Start(ctx, server.MariaDB, server.Options{}); err == nil {
		s.Close()
		t.Error("started under a cancelled context")
	}
	servertest.Run(t, server.MariaDB)
}
