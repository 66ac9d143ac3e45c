package postgres

import (
	"fmt"
	"slices"
	"testing"
)

// TestChainsTakeLinearTime: the number of steps grows with the links, in either order, with a ring, and when every link
// has a patient of its own.
func TestChainsTakeLinearTime(t *testing.T) {
	const links = 20_000
	for name, own := range map[string]bool{"one patient": false, "a patient each": true} {
		for order, number := range map[string]func(i int) int{
			"ascending":  func(i int) int { return i },
			"descending": func(i int) int { return links - 1 - i },
		} {
			t.Run(name+"/"+order, func(t *testing.T) {
				c := newChain()
				id := func(i int) string { return fmt.Sprint("v", i) }
				for i := range links {
					n := number(i)
					c.link(id(n), id(n+1))
				}
				c.link(id(links-1), id(links-2)) // a ring at the end
				for i := range links {
					if n := number(i); own || n == links-1 {
						c.add(c.node(id(n)), c.patient(fmt.Sprint("p", n)))
					}
				}
				c.run()
				if most := (maxPatients + 2) * (links + 1); c.steps > most {
					t.Errorf("%d steps for %d links, want %d at most", c.steps, links, most)
				}
				about := map[string][]string{}
				c.about(func(id, patient string) bool { about[id] = append(about[id], patient); return true })
				want, last := []string{"p19999"}, []string{"p19999"}
				if own {
					want, last = []string{many}, []string{"p19998", "p19999"}
				}
				slices.Sort(about["v19999"])
				if !slices.Equal(about["v0"], want) || !slices.Equal(about["v19999"], last) {
					t.Errorf("v0 is about %v, want %v; v19999 about %v, want %v", about["v0"], want, about["v19999"], last)
				}
			})
		}
	}
}
