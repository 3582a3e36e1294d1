package livepool_test

// Job bodies and their ids.

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"strings"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
)

func TestOncePerIDTakesAName(t *testing.T) {
	p := openFake(t, &fakedb.DB{}, nil)
	job := livepool.Job(p, func(context.Context, *livepool.Session, int) error {
		t.Error("run, although nothing keeps it from being run twice")
		return nil
	}, livepool.OncePerID(""))
	if err := job(t.Context(), 5); err == nil || !strings.Contains(err.Error(), "OncePerID") {
		t.Errorf("error %v, want one about OncePerID", err)
	}
}

func TestSessionsAndPoolsAreNotSerialised(t *testing.T) {
	p := openFake(t, &fakedb.DB{}, nil)
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		for name, v := range map[string]any{"session": s, "pool": p} {
			if _, err := json.Marshal(v); err == nil || !strings.Contains(err.Error(), "pass the id") {
				t.Errorf("json of a %s: %v", name, err)
			}
			if err := gob.NewEncoder(new(bytes.Buffer)).Encode(v); err == nil || !strings.Contains(err.Error(), "pass the id") {
				t.Errorf("gob of a %s: %v", name, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
