package netns

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

func TestABlackHoleHealsWithTheSameConnection(t *testing.T) {
	for _, kind := range server.Kinds() {
		servertest.Have(t, kind)
	}
	Run(t, func(t *testing.T) {
		servertest.Each(t, func(t *testing.T, s *server.Server) {
			db, err := sql.Open("mysql", s.DSN())
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			conn, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			id := func() (id int, err error) {
				return id, conn.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id)
			}
			before, err := id()
			if err != nil {
				t.Fatal(err)
			}

			LoopbackDown(t)
			answered := make(chan error, 1)
			after := 0
			go func() {
				var err error
				after, err = id()
				answered <- err
			}()
			select {
			case err := <-answered:
				t.Fatalf("answered out of a black hole: %v", err)
			case <-time.After(300 * time.Millisecond):
			}
			if c, err := net.DialTimeout("tcp", s.Addr(), 300*time.Millisecond); err == nil {
				c.Close()
				t.Error("a dial succeeded in a black hole")
			}

			LoopbackUp(t)
			if err := <-answered; err != nil {
				t.Fatalf("after the black hole: %v", err)
			}
			if after != before {
				t.Errorf("connection %d became %d", before, after)
			}
		})
	})
}

// The outcomes of a test inside must be those of the test outside. These two are what is run
// inside; the next one runs them and looks.
func TestHelperFails(t *testing.T) {
	if helping() {
		Run(t, func(t *testing.T) { t.Error("as it should") })
	}
}

func TestHelperSkips(t *testing.T) {
	if helping() {
		Run(t, func(t *testing.T) { t.Skip("as it should") })
	}
}

const envHelper = "LIVEPOOL_NETNS_HELPER"

func helping() bool { return os.Getenv(envHelper) != "" }

func TestTheOutcomeInsideIsTheOutcome(t *testing.T) {
	Run(t, func(*testing.T) {}) // skips where there is no inside
	for _, tt := range []struct {
		name, ci, say string
		exit          int
	}{
		{"TestHelperFails", "", "as it should", 1},
		{"TestHelperSkips", "", "--- SKIP: TestHelperSkips", 0},
		{"TestHelperSkips", "true", "CI must not skip", 1},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.run=^"+tt.name+"$")
		cmd.Env = append(os.Environ(), envHelper+"=1", "CI="+tt.ci)
		out, err := cmd.CombinedOutput()
		exit := 0
		if e := (*exec.ExitError)(nil); errors.As(err, &e) {
			exit = e.ExitCode()
		}
		if exit != tt.exit || !bytes.Contains(out, []byte(tt.say)) {
			t.Errorf("%s with CI=%q: exit %d, want %d, saying %q:\n%s", tt.name, tt.ci, exit, tt.exit, tt.say, out)
		}
	}
}

func TestTheLoopbackOfTheMachineIsNotTouched(t *testing.T) {
	if err := setLoopback(false); err == nil {
		t.Error("took down the loopback interface of the machine")
	}
}
