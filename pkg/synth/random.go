package synth

import "math/bits"

const golden = 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio: the step of SplitMix64

// mix is the finaliser of SplitMix64: a bijection that spreads every bit over all the others.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// rng is SplitMix64: one word of state, so that every patient can have its own stream at no cost. It returns
// only integers, because floating point may differ between architectures.
type rng struct{ state uint64 }

func (r *rng) next() uint64 {
	r.state += golden
	return mix(r.state)
}

// below returns a number from 0 to n-1; n is at least 1.
func (r *rng) below(n int) int {
	high, _ := bits.Mul64(r.next(), uint64(n))
	return int(high)
}

// between returns a number from low to high, both included.
func (r *rng) between(low, high int) int { return low + r.below(high-low+1) }

// around returns a number near the middle of center-spread..center+spread more often than one near its ends.
func (r *rng) around(center, spread int) int {
	return center + (r.between(-spread, spread)+r.between(-spread, spread))/2
}

func (r *rng) chance(percent int) bool { return r.below(100) < percent }

func pick[T any](r *rng, from []T) *T { return &from[r.below(len(from))] }

// pickWeighted picks by weights that add up to 100.
func pickWeighted[T any](r *rng, from []T, weight func(*T) int) *T {
	at := r.below(100)
	for i := range from {
		if at -= weight(&from[i]); at < 0 {
			return &from[i]
		}
	}
	return &from[len(from)-1]
}

// uuid is an id of 128 bits, written in the form of a version 4 UUID.
type uuid struct{ high, low uint64 }

// ids generates the ids of one owner: a patient, or one kind of shared resource.
type ids struct {
	key  uuid
	used uint64
}

// newIDs returns the ids of the owner with the number index among the owners of its space. Both halves of the key are
// bijections of index, so that two owners never share a key.
func newIDs(seed, space, index uint64) ids {
	base := mix(seed + golden*(space+1))
	return ids{key: uuid{
		high: mix(base ^ mix(index)),
		low:  mix(mix(^base) + mix(index+golden)),
	}}
}

// at returns the owner's n'th id.
func (i ids) at(n uint64) uuid {
	return uuid{high: mix(i.key.high + n*golden), low: mix(i.key.low ^ mix(n+1))}
}

// next returns the owner's next unused id.
func (i *ids) next() uuid {
	id := i.at(i.used)
	i.used++
	return id
}
