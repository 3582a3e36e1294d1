// Package servertest gives a test its private server and takes it away afterwards. The server
// itself is package server's.
package servertest

import (
	"errors"
	"testing"

	"github.com/livepool/livepool/internal/server"
	"github.com/livepool/livepool/internal/testenv"
)

// Run starts a server for a test, with more options for its program if args are given. Where
// there is none to be had the test is skipped.
func Run(t testing.TB, kind server.Kind, args ...string) *server.Server {
	t.Helper()
	return RunOptions(t, kind, server.Options{Args: args})
}

// RunOptions is Run with all that a server can be given.
func RunOptions(t testing.TB, kind server.Kind, o server.Options) *server.Server {
	t.Helper()
	s, err := server.Start(t.Context(), kind, o)
	if errors.Is(err, server.ErrUnavailable) {
		testenv.Missing(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", kind, s.Log())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Each runs f as a subtest on a server of each kind.
func Each(t *testing.T, f func(t *testing.T, s *server.Server), args ...string) {
	t.Helper()
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) { f(t, Run(t, kind, args...)) })
	}
}
