// job.go makes a unit of work into a job body for a runner, and refuses to let
// a session or a pool be passed to a job.

package livepool

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strconv"
)

// ID is what identifies the object that a job is about: an integer, a string or
// a UUID. A row object or a session is none: by the time the job runs it would
// be stale, or ended.
type ID interface {
	~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64 | ~string | ~[16]byte
}

// Job returns a job body that runs fn as a unit of work on p. The id is looked
// up by fn, in its own transaction.
func Job[I ID](p *Pool, fn func(ctx context.Context, s *Session, id I) error, opts ...SessionOption) func(ctx context.Context, id I) error {
	return func(ctx context.Context, id I) error {
		return p.WithSession(ctx, func(ctx context.Context, s *Session) error { return fn(ctx, s, id) },
			append(opts[:len(opts):len(opts)], completeOnce(id))...)
	}
}

// OncePerID is for Job: Once with the key "name:id", so that a job of that name
// is applied at most once for each id. Where ids are strings, no name should be
// another with a colon and more.
func OncePerID(name string) SessionOption {
	return func(o *sessionOptions) { o.onceName, o.oncePerID = name, true }
}

// completeOnce gives OncePerID the id.
func completeOnce[I ID](id I) SessionOption {
	return func(o *sessionOptions) {
		switch {
		case o.hasOnce && o.oncePerID:
			o.refused = fmt.Errorf("livepool: Job: Once(%q) and OncePerID(%q) together: a unit has one key", o.once, o.onceName)
		case o.hasOnce:
			o.refused = fmt.Errorf("livepool: Job: Once(%q) is one key for all ids, of which only the first would be applied: use OncePerID(%q)", o.once, o.once)
		}
		if !o.oncePerID || o.onceName == "" {
			return
		}
		o.once, o.hasOnce, o.oncePerID = o.onceName+":"+idText(id), true, false
	}
}

// idText is the id in a key: decimal, as it is, or 32 hexadecimal digits.
func idText[I ID](id I) string {
	// By kind, past any String method, which need not tell ids apart.
	switch v := reflect.ValueOf(id); {
	case v.Kind() == reflect.String:
		return v.String()
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10)
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10)
	default:
		uuid := v.Convert(reflect.TypeFor[[16]byte]()).Interface().([16]byte)
		return hex.EncodeToString(uuid[:])
	}
}

var errNotSerialisable = errors.New("livepool: a session or a pool cannot be passed to a job: pass the id of the object, and look it up in the job's own session")

// MarshalJSON refuses: pass an id to a job, never a session.
func (s *Session) MarshalJSON() ([]byte, error) { return nil, errNotSerialisable }

// GobEncode refuses: pass an id to a job, never a session.
func (s *Session) GobEncode() ([]byte, error) { return nil, errNotSerialisable }

// MarshalJSON refuses: pass an id to a job, never a pool.
func (p *Pool) MarshalJSON() ([]byte, error) { return nil, errNotSerialisable }

// GobEncode refuses: pass an id to a job, never a pool.
func (p *Pool) GobEncode() ([]byte, error) { return nil, errNotSerialisable }
