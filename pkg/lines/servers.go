package lines

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Servers collects the servers that the Bundles of several files come from, by the bases of their full URLs. Resources of
// two servers may have the same ids. It is safe for concurrent use.
type Servers struct {
	mu    sync.Mutex
	first map[string]string // by base: the first place, in the order of names
}

// Add adds the base of a server and the place where it was found.
func (s *Servers) Add(base, place string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == nil {
		s.first = map[string]string{}
	}
	if first, known := s.first[base]; !known || place < first {
		s.first[base] = place
	}
}

// Several returns the bases with their places, sorted, if they are those of more than one server. own are the bases of the
// data itself, which are one server.
func (s *Servers) Several(own []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var several []string
	ours := 0
	for _, base := range slices.Sorted(maps.Keys(s.first)) {
		if slices.Contains(own, base) {
			ours = 1
			continue
		}
		several = append(several, fmt.Sprintf("%s (%s)", base, s.first[base]))
	}
	if len(several)+ours < 2 {
		return nil
	}
	return several
}
