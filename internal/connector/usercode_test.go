package connector_test

// A panic in the user's code: settings that are functions, the logger, the dialer.

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// panickingHandler is a slog.Handler, and a logger of the driver's, with a fault.
type panickingHandler struct{ slog.Handler }

func (panickingHandler) Enabled(context.Context, slog.Level) bool { panic("the logger's fault") }

// A panic in what the user put into the Config takes neither the program nor
// the pool with it: the caller gets an answer, the pool works on, and the log
// says whose fault it was.
func TestPanicInTheUsersCodeIsContained(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(cfg *livepool.Config)
		says   string
	}{
		{"Classify", func(cfg *livepool.Config) {
			cfg.Classify = func(error) (livepool.Class, bool) { panic("a fault") }
		}, "Config.Classify"},
		{"BackOff", func(cfg *livepool.Config) { cfg.BackOff = func() backoff.BackOff { panic("a fault") } }, "Config.BackOff"},
		{"a BackOff that is nil", func(cfg *livepool.Config) { cfg.BackOff = func() backoff.BackOff { return nil } }, "Config.BackOff"},
		{"Logger", func(cfg *livepool.Config) { cfg.Logger = slog.New(panickingHandler{}) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, log := &fakedb.DB{}, &labtest.CapturedLog{}
				p := labtest.OpenFake(t, f, func(cfg *livepool.Config) {
					cfg.Logger = slog.New(log)
					tt.change(cfg)
				})
				n := 0
				f.OnExec = func(context.Context, *fakedb.Conn, string) error {
					if n++; n < 4 {
						return fakedb.ServerError(1213, "Deadlock found")
					}
					return nil
				}
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, "UPDATE t SET a = 1")
					return err
				})
				if err != nil || n != 4 {
					t.Errorf("got %v after %d runs, want success at the fourth", err, n)
				}
				if tt.says != "" && len(log.LinesWith(tt.says+" panicked")) == 0 {
					t.Errorf("the log does not say that %s panicked", tt.says)
				}
				if _, err := p.ExecContext(t.Context(), "UPDATE t SET a = 2"); err != nil {
					t.Errorf("afterwards: %v", err)
				}
				p.Close()
			})
		})
	}
}

// So too where a connection is opened, by a caller or in the background.
func TestPanicWhileConnectingIsContained(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(my *mysql.Config)
	}{
		{"DialFunc", func(my *mysql.Config) {
			my.DialFunc = func(context.Context, string, string) (net.Conn, error) { panic("a fault") }
		}},
		{"BeforeConnect", func(my *mysql.Config) {
			my.Apply(mysql.BeforeConnect(func(context.Context, *mysql.Config) error { panic("a fault") }))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &labtest.CapturedLog{}
				cfg := livepool.NewConfig()
				cfg.MySQL, cfg.MinIdle, cfg.Logger = mysql.NewConfig(), 2, slog.New(log) // MinIdle dials in the background
				tt.change(cfg.MySQL)
				p, err := livepool.OpenConfig(cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				if _, err := p.ExecContext(t.Context(), "DO 1"); err == nil || !strings.Contains(err.Error(), "panicked") {
					t.Errorf("a statement: got %v, want to be told of the panic", err)
				}
				err = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, "DO 1")
					return err
				}, livepool.MaxAttempts(1))
				if err == nil || !strings.Contains(err.Error(), "panicked") {
					t.Errorf("a unit: got %v, want to be told of the panic", err)
				}
				if told := log.LinesWith("panicked"); len(told) == 0 || !strings.Contains(told[0], "a fault") {
					t.Errorf("the log does not say what happened")
				}
			})
		})
	}
}
