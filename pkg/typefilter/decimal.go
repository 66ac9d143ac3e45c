package typefilter

import (
	"cmp"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// decimal is an exact number: 0.digits times 10 to the power of point. Its size does not depend on the exponent.
type decimal struct {
	negative bool
	digits   string // without zeros at its ends, "" for 0
	point    int
}

// The limits of a range without one. No number is beyond them.
var (
	lowest  = decimal{negative: true, digits: "1", point: math.MaxInt}
	highest = decimal{digits: "1", point: math.MaxInt}
)

// parseDecimal reads a number in the form of JSON; leading zeros are allowed. Exponents are cut off at what an int32 has.
func parseDecimal(text []byte) (d decimal, ok bool) {
	mantissa, exponent := string(text), 0
	if i := strings.IndexAny(mantissa, "eE"); i >= 0 {
		var err error
		if exponent, err = exponentOf(mantissa[i+1:]); err != nil {
			return d, false
		}
		mantissa = mantissa[:i]
	}
	mantissa, d.negative = strings.CutPrefix(mantissa, "-")
	whole, fraction, dotted := strings.Cut(mantissa, ".")
	if whole == "" || dotted && fraction == "" {
		return d, false
	}
	d.digits, d.point = whole+fraction, exponent+len(whole)
	for _, c := range []byte(d.digits) {
		if c < '0' || c > '9' {
			return d, false
		}
	}
	return d.normal(), true
}

// exponentOf reads an exponent.
func exponentOf(text string) (int, error) {
	exponent, err := strconv.ParseInt(text, 10, 32)
	if err != nil && exponent != 0 { // out of range
		err = nil
	}
	return int(exponent), err
}

// normal returns the same number without zeros at the ends of its digits.
func (d decimal) normal() decimal {
	digits := strings.TrimLeft(d.digits, "0")
	d.point -= len(d.digits) - len(digits)
	d.digits = strings.TrimRight(digits, "0")
	if d.digits == "" {
		return decimal{}
	}
	return d
}

// compare returns -1, 0 or 1.
func (d decimal) compare(other decimal) int {
	if d.sign() != other.sign() || d.sign() == 0 {
		return cmp.Compare(d.sign(), other.sign())
	}
	return d.sign() * cmp.Or(cmp.Compare(d.point, other.point), cmp.Compare(d.digits, other.digits))
}

func (d decimal) sign() int {
	switch {
	case d.digits == "":
		return 0
	case d.negative:
		return -1
	}
	return 1
}

// scaled is coefficient times 10 to the power of exponent.
type scaled struct {
	coefficient *big.Int
	exponent    int
}

// mostDigits bounds the digits and the exponents of numbers that are calculated with.
const mostDigits = 200

// scaled returns the number as an integer of its digits, false if it has too many.
func (d decimal) scaled() (scaled, bool) {
	if len(d.digits) > mostDigits || d.point > mostDigits || d.point < -mostDigits {
		return scaled{}, false
	}
	coefficient, ok := new(big.Int).SetString("0"+d.digits, 10)
	if d.negative {
		coefficient.Neg(coefficient)
	}
	return scaled{coefficient, d.point - len(d.digits)}, ok
}

// decimal returns the number in its other form.
func (s scaled) decimal() decimal {
	digits, negative := strings.CutPrefix(s.coefficient.String(), "-")
	return decimal{negative, digits, s.exponent + len(digits)}.normal()
}

// at returns the same number with an exponent that is not greater than that of s.
func (s scaled) at(exponent int) *big.Int {
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(s.exponent-exponent)), nil)
	return power.Mul(power, s.coefficient)
}

func (s scaled) plus(other scaled) scaled {
	exponent := min(s.exponent, other.exponent)
	sum := s.at(exponent)
	return scaled{sum.Add(sum, other.at(exponent)), exponent}
}

func (s scaled) times(other scaled) scaled {
	return scaled{new(big.Int).Mul(s.coefficient, other.coefficient), s.exponent + other.exponent}
}
