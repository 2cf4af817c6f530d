package nft_test

import (
	"testing"

	"sluice/testenv"

	"github.com/google/nftables"
)

// TestChurn: while others change their own tables without a pause, readings of
// ours are right and changes of ours go through.
func TestChurn(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "churn")
	tab := open(t, ns)
	all := many(300, 2)
	apply(t, tab, all)
	other := foreign(t, ns)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			o := &nftables.Table{Name: "other", Family: nftables.TableFamilyINet}
			other.AddTable(o)
			c := other.AddChain(&nftables.Chain{Name: "c", Table: o})
			other.AddRule(&nftables.Rule{Table: o, Chain: c})
			other.DelTable(o)
			if err := other.Flush(); err != nil {
				t.Error(err)
				return
			}
			n++
		}
	}()
	for i := range 4 {
		if changed, err := tab.Restore(); err != nil || changed {
			t.Errorf("restore: %v, %v", changed, err)
		}
		change := some()
		if i%2 == 1 {
			for at := range change {
				change[at] = nil
			}
		}
		apply(t, tab, change)
	}
	close(stop)
	t.Logf("%d foreign transactions", <-done)
	same(t, tab, all)
}
