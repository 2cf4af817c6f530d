package simulate

import (
	"fmt"
	"io"
	"time"
)

// Header writes the names of the columns that [Tick.Print] writes.
func Header(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%10s %-8s %7s %9s %7s %5s %6s %5s %6s %9s %9s\n",
		"TIME", "PHASE", "FLOWS", "NEW/S", "DESIRED", "READY", "NEEDED", "SPARE", "HELD", "WAIT P50", "WAIT MAX")
	return err
}

// Print writes a line of the table.
func (t Tick) Print(w io.Writer) error {
	p50, most := "-", "-"
	if t.Waited > 0 {
		p50, most = wait(t.WaitP50), wait(t.WaitMax)
	}
	_, err := fmt.Fprintf(w, "%10s %-8s %7d %9.1f %7d %5d %6d %+5d %6d %9s %9s\n",
		span(t.Time), t.Phase, t.Flows, t.New, t.Desired, t.Ready, t.Needed, t.Spare, t.Held, p50, most)
	return err
}

// Print writes the summary, four lines.
func (s Summary) Print(w io.Writer) error {
	_, err := fmt.Fprintf(w, `replicas  mean %.2f, most %d (needed %d), %.3f replica-hours in %s, asleep %.1f %%
capacity  spare %.2f replicas on average, too few in %.1f %% of the time
flows     %d: %d served, %d waiting, %d reset, %d timed out, %d cut
waits     %d of those served: p50 %s, p99 %s, max %s; cold starts: %d
`,
		s.MeanReplicas, s.MostReplicas, s.MostNeeded, s.ReplicaHours, span(s.Length), 100*s.Asleep,
		s.MeanSpare, 100*s.Short,
		s.Flows, s.Served, s.Waiting, s.Reset, s.TimedOut, s.Cut,
		s.Waited, wait(s.WaitP50), wait(s.WaitP99), wait(s.WaitMax), s.ColdStarts)
	return err
}

func wait(s float64) string {
	if s >= 1 {
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%.1f ms", 1000*s)
}

func span(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond).String()
}
