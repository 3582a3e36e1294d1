package connector_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/loopback"
)

// refuseLogins answers each login with error 1045.
func refuseLogins(t *testing.T, logins *atomic.Int64) string {
	l, err := loopback.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				hello := "\x0a8.0.30\x00\x01\x00\x00\x0012345678\x00\x09\xa2\x21\x02\x00\x08\x00\x15" + strings.Repeat("\x00", 10) + "123456789012\x00mysql_native_password\x00"
				sendPacket(c, 0, hello)
				head := make([]byte, 4)
				if _, err := io.ReadFull(c, head); err != nil {
					return
				}
				_, _ = io.CopyN(io.Discard, c, int64(head[0])|int64(head[1])<<8)
				logins.Add(1)
				sendPacket(c, 2, "\xff\x15\x04#28000Access denied for user 'app'")
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	return l.Addr().String()
}

func sendPacket(c net.Conn, seq byte, payload string) {
	_, _ = c.Write(append([]byte{byte(len(payload)), byte(len(payload) >> 8), 0, seq}, payload...))
}

func openRefused(t *testing.T, addr string, hook func(context.Context, *mysql.Config) error) *livepool.Pool {
	cfg, err := livepool.ParseDSN("app:x@tcp(" + addr + ")/shop")
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.MySQL.Apply(mysql.BeforeConnect(hook)); err != nil {
		t.Fatal(err)
	}
	cfg.Logger, cfg.OutageWait, cfg.PoolSize, cfg.MaxOverflow = labtest.DiscardLogger, time.Second, 20, 0
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// Whoever reads that no new credentials could be had must read that the old were refused.
func TestRefusalIsToldWhereNoNewCredentialsAreHad(t *testing.T) {
	var logins atomic.Int64
	for _, own := range []error{errors.New("the store is sealed"), &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("store: connection refused")}} {
		p := openRefused(t, refuseLogins(t, &logins), func(ctx context.Context, my *mysql.Config) error {
			if livepool.RefusedLogin(ctx) != nil {
				return own
			}
			return nil
		})
		_, err := p.ExecContext(t.Context(), "DO 1")
		if !labtest.IsServerError(err, 1045) {
			t.Errorf("%v: the error does not say that the login was refused", err)
		}
		if !strings.Contains(err.Error(), own.Error()) || p.Stats().Outages != 0 {
			t.Errorf("%v, and %d outages, want to read what the hook said", err, p.Stats().Outages)
		}
	}
}

// However many logins are refused, and for however long, new credentials are asked for once a
// second.
func TestNewCredentialsAreAskedForOnceASecond(t *testing.T) {
	var logins, fetches atomic.Int64
	var mu sync.Mutex
	user := ""
	p := openRefused(t, refuseLogins(t, &logins), func(ctx context.Context, my *mysql.Config) error {
		mu.Lock()
		defer mu.Unlock()
		if user == "" || livepool.RefusedLogin(ctx) != nil {
			user = "app"
			fetches.Add(1)
		}
		my.User = user
		return nil
	})
	var wg sync.WaitGroup
	start := time.Now()
	for range 20 {
		wg.Go(func() {
			for time.Since(start) < 1500*time.Millisecond {
				_, _ = p.ExecContext(t.Context(), "DO 1")
				time.Sleep(20 * time.Millisecond) // a worker that goes on to the next job
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if n := fetches.Load(); n < 2 || n > 2+int64(took/time.Second) || logins.Load() < 4*n {
		t.Errorf("%d fetches of credentials and %d refused logins in %s", n, logins.Load(), took.Round(time.Millisecond))
	}
}
