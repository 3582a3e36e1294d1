package connector_test

import (
	"testing"

	"github.com/livepool/livepool/internal/lab/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	dns.Default.Use()
	goleak.VerifyTestMain(m)
}
