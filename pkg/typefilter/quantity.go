package typefilter

import (
	"bytes"
	"errors"
	"math/big"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// quantities are the values of a number or quantity parameter (R4 3.1.1.4.6, 3.1.1.4.11).
type quantities []quantity

type quantity struct {
	prefix    string
	value     decimal
	low, high decimal // of eq, ne and ap
	unit
}

// unit is that of a value: none, system|code, or code alone, which is a code or a unit.
type unit struct{ system, code string }

var (
	errNumber   = errors.New("a number is digits with an optional sign, fraction and exponent, of up to 200 digits")
	errQuantity = errors.New("a quantity is number, number|system|code or number||unit")
)

func parseQuantities(values []string, units bool) (test, error) {
	var all quantities
	for _, value := range values {
		parts := fields(value)
		prefix, text, err := cutPrefix(parts[0])
		if err != nil {
			return nil, err
		}
		q := quantity{prefix: prefix}
		switch {
		case len(parts) == 1:
		case !units:
			return nil, errNumber
		case len(parts) != 3 || parts[2] == "":
			return nil, errQuantity
		default:
			q.unit = unit{parts[1], parts[2]}
		}
		if !q.parse(text) {
			return nil, errNumber
		}
		all = append(all, q)
	}
	return all, nil
}

// parse sets the number. The range of eq is half a unit of the last digit to both sides, and that of ap a tenth of the
// value, but at least that.
func (q *quantity) parse(text string) (ok bool) {
	if q.value, ok = parseDecimal([]byte(text)); !ok {
		return false
	}
	last, ok := parseDecimal(lastDigit(text))
	if !ok {
		return false
	}
	value, ok1 := q.value.scaled()
	half, ok2 := last.scaled()
	if !ok1 || !ok2 {
		return false
	}
	half = half.times(scaled{big.NewInt(5), -1})
	if q.prefix == "ap" {
		tenth := scaled{new(big.Int).Abs(value.coefficient), value.exponent - 1}
		if tenth.decimal().compare(half.decimal()) > 0 {
			half = tenth
		}
	}
	q.high = value.plus(half).decimal()
	q.low = value.plus(scaled{half.coefficient.Neg(half.coefficient), half.exponent}).decimal()
	return true
}

// lastDigit returns the number with its digits replaced by zeros and the last one by 1.
func lastDigit(text string) []byte {
	unit := bytes.TrimPrefix([]byte(text), []byte("-"))
	end := bytes.IndexAny(unit, "eE")
	if end < 0 {
		end = len(unit)
	}
	for i, c := range unit[:end] {
		if c != '.' {
			unit[i] = '0'
		}
	}
	unit[end-1] = '1'
	return unit
}

// target is the range of a value in a line, with the units of its limits.
type target struct {
	low, high                 decimal
	excludesLow, excludesHigh bool // as "<" does
	units                     []measure
}

// measure has the texts of the unit of a value.
type measure struct{ system, code, unit []byte }

// match compares a number, Quantity (also Age, Duration and so on), Money, Range or SampledData. What is not one of them
// does not match.
func (all quantities) match(value []byte) (bool, error) {
	t, ok, err := readTarget(value)
	if !ok || err != nil {
		return false, err
	}
	for i := range all {
		if q := &all[i]; q.holds(&t) && q.fits(t.units) {
			return true, nil
		}
	}
	return false, nil
}

// holds compares ranges as R4 3.1.1.4.5 has it. The value itself has no width where a prefix orders.
func (q *quantity) holds(t *target) bool {
	low, high := t.low.compare(q.value), t.high.compare(q.value)
	within := t.low.compare(q.low) >= 0 && t.high.compare(q.high) < 0
	switch q.prefix {
	case "eq":
		return within
	case "ne":
		return !within
	case "gt":
		return high > 0
	case "lt":
		return low < 0
	case "ge":
		return high > 0 || high == 0 && !t.excludesHigh
	case "le":
		return low < 0 || low == 0 && !t.excludesLow
	case "sa":
		return low > 0 || low == 0 && t.excludesLow
	case "eb":
		return high < 0 || high == 0 && t.excludesHigh
	}
	above, below := t.low.compare(q.high), t.high.compare(q.low) // ap
	return (above < 0 || above == 0 && !t.excludesLow) && (below > 0 || below == 0 && !t.excludesHigh)
}

// fits compares units by their texts, without conversion.
func (u *unit) fits(measures []measure) bool {
	for _, m := range measures {
		switch {
		case u.code == "":
		case u.system != "" && (u.system != string(m.system) || u.code != string(m.code)):
			return false
		case u.code != string(m.code) && (u.system != "" || u.code != string(m.unit)):
			return false
		}
	}
	return u.code == "" || len(measures) > 0
}

var (
	quantityNames = []string{"value", "comparator", "system", "code", "unit", "currency"}
	rangeNames    = []string{"value", "low", "high", "origin", "data", "factor"}
)

// readTarget returns the range of a value.
func readTarget(value []byte) (t target, ok bool, err error) {
	if value[0] != '{' {
		t.low, ok = parseDecimal(value)
		t.high = t.low
		return t, ok, nil
	}
	var found [6][]byte
	if _, err = fhir.Fields(value, rangeNames, found[:]); err != nil {
		return t, false, err
	}
	switch {
	case isSet(found[0]):
		return readQuantity(value)
	case isSet(found[1]) || isSet(found[2]):
		return readRange(found[1], found[2])
	case isSet(found[3]):
		return readSamples(found[3], found[4], found[5])
	}
	return t, false, nil
}

// readQuantity reads a Quantity or Money.
func readQuantity(value []byte) (t target, ok bool, err error) {
	if value[0] != '{' {
		return t, false, nil
	}
	var found [6][]byte
	if _, err = fhir.Fields(value, quantityNames, found[:]); err != nil || !isSet(found[0]) {
		return t, false, err
	}
	if t.low, ok = parseDecimal(found[0]); !ok {
		return t, false, nil
	}
	t.high = t.low
	switch string(fhir.Text(found[1])) {
	case "":
	case "<":
		t.low, t.excludesHigh = lowest, true
	case "<=":
		t.low = lowest
	case ">":
		t.high, t.excludesLow = highest, true
	case ">=":
		t.high = highest
	default:
		return t, false, nil
	}
	m := measure{fhir.Text(found[2]), fhir.Text(found[3]), fhir.Text(found[4])}
	if currency := fhir.Text(found[5]); currency != nil {
		m = measure{system: []byte("urn:iso:std:iso:4217"), code: currency}
	}
	t.units = []measure{m}
	return t, true, nil
}

// readRange reads a Range, which is open where it has no limit.
func readRange(low, high []byte) (t target, ok bool, err error) {
	t.low, t.high = lowest, highest
	for i, limit := range [][]byte{low, high} {
		if !isSet(limit) {
			continue
		}
		one, ok, err := readQuantity(limit)
		if !ok || err != nil {
			return t, false, err
		}
		if i == 0 {
			t.low = one.low
		} else {
			t.high = one.high
		}
		t.units = append(t.units, one.units...)
	}
	return t, true, nil
}

// readSamples reads SampledData: the smallest and the largest of its values (those of data times factor, from origin on),
// without those that were out of the limits or an error.
func readSamples(origin, data, factor []byte) (t target, ok bool, err error) {
	t, ok, err = readQuantity(origin)
	if !ok || err != nil || t.low.compare(t.high) != 0 { // with a comparator it is no origin
		return t, false, err
	}
	zero, ok1 := t.low.scaled()
	step := scaled{big.NewInt(1), 0}
	ok2 := true
	if isSet(factor) {
		d, parsed := parseDecimal(factor)
		if step, ok2 = d.scaled(); !parsed {
			return t, false, nil
		}
	}
	t.low, t.high = highest, lowest
	for text := range bytes.FieldsSeq(fhir.Text(data)) {
		d, ok := parseDecimal(text)
		if !ok {
			continue
		}
		if d.compare(t.low) < 0 {
			t.low = d
		}
		if d.compare(t.high) > 0 {
			t.high = d
		}
	}
	low, ok3 := t.low.scaled()
	high, ok4 := t.high.scaled()
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return t, false, nil
	}
	t.low, t.high = low.times(step).plus(zero).decimal(), high.times(step).plus(zero).decimal()
	if t.low.compare(t.high) > 0 { // a negative factor
		t.low, t.high = t.high, t.low
	}
	return t, true, nil
}
