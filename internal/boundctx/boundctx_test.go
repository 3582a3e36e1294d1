package boundctx_test

import (
	"context"
	"errors"
	"runtime"
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

// Package context would start a goroutine for each AfterFunc on a context that is not its
// own, and has none.
func TestAfterFuncNeedsNoGoroutine(t *testing.T) {
	unit, endUnit := context.WithCancel(t.Context())
	caller, endCaller := context.WithCancel(context.WithoutCancel(unit))
	defer endCaller()
	b := boundctx.Bind(caller, unit)
	before := runtime.NumGoroutine()
	ended := make(chan string, 3)
	stop := context.AfterFunc(b, func() { ended <- "stopped" })
	context.AfterFunc(b, func() { ended <- "waits" })
	if n := runtime.NumGoroutine() - before; n != 0 {
		t.Errorf("%d goroutines wait for the end", n)
	}
	if !stop() || stop() {
		t.Error("stop does not say that it has prevented the call, once")
	}
	endUnit()
	if got := <-ended; got != "waits" {
		t.Errorf("called: %s", got)
	}
	late := context.AfterFunc(b, func() { ended <- "late" })
	if got := <-ended; got != "late" || late() {
		t.Errorf("called after the end: %s", got)
	}
}
