package boundctx_test

import (
	"context"
	"errors"
	"testing"

	"github.com/livepool/livepool/internal/boundctx"
)

func TestBind(t *testing.T) {
	t.Parallel()
	unit, endUnit := context.WithCancel(t.Context())
	defer endUnit()
	if boundctx.Bind(context.WithValue(unit, t, 1), unit) != nil {
		t.Error("a context that ends with the unit was bound")
	}
	caller, endCaller := context.WithCancel(context.WithoutCancel(unit))
	first, second, released := boundctx.Bind(caller, unit), boundctx.Bind(context.WithoutCancel(unit), unit), boundctx.Bind(caller, unit)
	if first == nil || second == nil || released == nil {
		t.Fatal("a context that outlives the unit was not bound")
	}
	released.Release()
	endCaller()
	<-first.Done()
	if first.Err() == nil || second.Err() != nil {
		t.Errorf("the caller's end: %v, and under another caller %v", first.Err(), second.Err())
	}
	endUnit()
	<-second.Done()
	if second.Err() == nil || released.Err() != nil {
		t.Errorf("the unit's end: %v, and released %v", second.Err(), released.Err())
	}
}

func TestEnded(t *testing.T) {
	t.Parallel()
	err := errors.New("over")
	ctx := boundctx.Ended(t.Context(), err)
	<-ctx.Done()
	if ctx.Err() != err {
		t.Errorf("ended with %v", ctx.Err())
	}
}
