package connector_test

// Dialers and network connections that mind neither contexts nor deadlines.

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
)

func TestDialerThatMindsNoContext(t *testing.T) {
	t.Parallel()
	cfg, err := livepool.ParseDSN("u@tcp(127.0.0.1:1)/?pool_connect_timeout=500ms&pool_outage_wait=0")
	if err != nil {
		t.Fatal(err)
	}
	hang := make(chan struct{})
	defer close(hang)
	cfg.Logger = labtest.DiscardLogger
	cfg.MySQL.DialFunc = func(context.Context, string, string) (net.Conn, error) { <-hang; return nil, net.ErrClosed }
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	labtest.ReturnsWithin(t, "Exec under a context", 10*time.Second, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := p.ExecContext(ctx, "DO 1"); err != context.DeadlineExceeded {
			t.Errorf("%v", err)
		}
	})
	labtest.ReturnsWithin(t, "Exec", 10*time.Second, func() {
		if _, err := p.ExecContext(context.Background(), "DO 1"); err == nil {
			t.Error("it succeeded")
		}
	})
	labtest.ReturnsWithin(t, "Close", 10*time.Second, func() { p.Close() })
}
