package behaviour_test

// Job bodies and their ids.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
)

type orderID string

func TestJob(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	body := func(ctx context.Context, s *livepool.Session, v int64) error { return labtest.Insert(int(v))(ctx, s) }
	job := livepool.Job(p, body, livepool.OncePerID("transfer"))
	for range 3 {
		for _, id := range []int64{1, 2} {
			if err := job(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
	}
	if n := count(t, s, "t"); n != 2 {
		t.Errorf("%d rows of two ids delivered three times, want 2", n)
	}
	named := livepool.Job(p, func(ctx context.Context, s *livepool.Session, id orderID) error { return labtest.Insert(3)(ctx, s) }, livepool.OncePerID("ship"))
	uuid := livepool.Job(p, func(ctx context.Context, s *livepool.Session, id [16]byte) error { return labtest.Insert(4)(ctx, s) }, livepool.OncePerID("pack"))
	if err := errors.Join(named(t.Context(), "A-17"), uuid(t.Context(), [16]byte{1, 2})); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"transfer:1", "transfer:2", "ship:A-17", "pack:01020000000000000000000000000000"} {
		if n := count(t, s, fmt.Sprintf("livepool_commits WHERE unit = '%s'", key)); n != 1 {
			t.Errorf("the commit table has %d rows for %s, want 1", n, key)
		}
	}
}

type secret string

func (secret) String() string { return "***" }

type uuidLike [16]byte

func (u uuidLike) String() string { return fmt.Sprintf("%x-%x", u[:8], u[8:]) }

func TestUnitOncePerIDOfAStringer(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	job := livepool.Job(p, func(ctx context.Context, s *livepool.Session, id secret) error { return labtest.Insert(1)(ctx, s) }, livepool.OncePerID("mail"))
	for _, id := range []secret{"a", "b", "c"} {
		if err := job(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if n := count(t, s, "t"); n != 3 {
		t.Errorf("%d rows of three ids, and nil for each", n)
	}
	u := livepool.Job(p, func(ctx context.Context, s *livepool.Session, id uuidLike) error { return nil }, livepool.OncePerID("u"))
	if err := u(t.Context(), uuidLike{1}); err != nil {
		t.Error(err)
	}
	if n := count(t, s, "livepool_commits WHERE unit = 'u:01000000000000000000000000000000'"); n != 1 {
		t.Errorf("a UUID type with String has not the documented key of 32 hexadecimal digits")
	}
}

// A fixed key in a job is one for all ids: the first would be applied, and the
// others taken for done.
func TestJobRefusesAFixedKey(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	fn := func(ctx context.Context, s *livepool.Session, id int) error { return labtest.Insert(id)(ctx, s) }
	for name, job := range map[string]func(context.Context, int) error{
		"Once":     livepool.Job(p, fn, livepool.Once("mail")),
		"both":     livepool.Job(p, fn, livepool.Once("mail"), livepool.OncePerID("mail")),
		"both too": livepool.Job(p, fn, livepool.OncePerID("mail"), livepool.Once("mail")),
	} {
		for id := range 3 {
			if err := job(t.Context(), id); err == nil || !strings.Contains(err.Error(), "OncePerID") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if n := count(t, s, "t"); n != 0 {
		t.Errorf("%d rows", n)
	}
}

// Jobs made of one slice of options do not write into it for each other.
func TestJobsShareTheirOptions(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	opts := make([]livepool.SessionOption, 0, 8)
	opts = append(opts, livepool.OncePerID("n"))
	job := livepool.Job(p, func(ctx context.Context, s *livepool.Session, id int) error { return labtest.Insert(id)(ctx, s) }, opts...)
	if err := job(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if spare := opts[:2][1]; spare != nil {
		t.Error("the job has written into its caller's options")
	}
	if n := count(t, s, "t"); n != 1 {
		t.Errorf("%d rows", n)
	}
}
