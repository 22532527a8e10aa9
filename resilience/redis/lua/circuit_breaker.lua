-- The circuit breaker's rules: machines/breaker.py and machines/tripping.py on the server's time.
--
-- KEYS: the circuit
-- ARGV: what to do, the terms as JSON, and
--       admit            -> the number of the probe (0: through a closed circuit), or -1
--       record, generation, probe, 1 if it failed, 1 if it was slow, for how long to open if it has to open again
--                        -> 1 if it counted, 0 if it came too late
--       release, generation, probe;  renew, generation, probe;  isolate;  lift;  reset
--                        -> 0
-- Behind that, always: when the circuit began to be kept, its generation before and now, its state, microseconds until it
-- is half-open (-1: not known), how often it has opened since it was closed and for how long the last time, the failures
-- counted, when a call last failed (0: never), the probes under way; then the last changes, each as the generation that it
-- began, old, new, and the instant.
local CLOSED, OPEN, HALF_OPEN, ISOLATED = 0, 1, 2, 3
-- Milliseconds for which a circuit is remembered that nobody uses, so that calls under way still find it.
local KEPT_FOR = 3600000
local REMEMBERED = 8

local terms = cjson.decode(ARGV[2])
local kept = redis.call('GET', KEYS[1])
local c = kept and cmsgpack.unpack(kept) or {last = 0, offset = 0}
local now, standing = line(c.last, c.offset)
local changed = standing ~= c.offset

local function fresh_wires()
  local wires = {}
  for place, condition in ipairs(terms.trip) do
    wires[place] = {calls = 0, failed = 0, slow = 0, seen = condition.slice and {} or ''}
  end
  return wires
end

if not kept then
  -- The generation is an instant, so that none is ever used again, whatever was forgotten.
  c = {last = 0, offset = standing, state = CLOSED, born = now, generation = now, reopen = 0, openings = 0, previous = 0,
    probes = {}, next = 0, successes = 0, isolations = 0, beneath = CLOSED, failed_at = 0, log = {}}
  changed = true
end
if c.told ~= terms.told then
  -- It is new, or other conditions hold since a new version was rolled out: what was counted for others says nothing.
  c.told, c.wires, changed = terms.told, fresh_wires(), true
end
local before = c.generation

local function become(state, at)
  c.generation = math.max(c.generation + 1, now)
  c.log[#c.log + 1] = {c.generation, c.state, state, at}
  if #c.log > REMEMBERED then
    table.remove(c.log, 1)
  end
  c.state, c.probes, c.successes, changed = state, {}, 0, true
end

local function open(at, open_for)
  c.openings = c.openings + 1
  c.previous = c.openings > 1 and math.max(terms.recovery, open_for) or terms.recovery
  c.reopen = at + c.previous
  become(OPEN, at)
end

local function close()
  c.openings, c.wires = 0, fresh_wires()
  become(CLOSED, now)
end

local function tick()
  while true do
    if c.state == OPEN and now >= c.reopen then
      become(HALF_OPEN, c.reopen)
    elseif c.state == HALF_OPEN and #c.probes > 0 then
      local ends = c.probes[1][2]
      for _, probe in ipairs(c.probes) do
        ends = math.min(ends, probe[2])
      end
      if now < ends then
        return
      end
      -- Nobody is here to say for how long: as long as the last time.
      open(ends, c.previous)
    else
      return
    end
  end
end

-- Forget what has left a window of time, which is kept in slices.
local function age(condition, wire)
  local oldest = condition.slice and math.floor(now / condition.slice) - condition.slices
  while oldest and wire.seen[1] and wire.seen[1][1] <= oldest do
    local old = table.remove(wire.seen, 1)
    wire.calls, wire.failed, wire.slow = wire.calls - old[2], wire.failed - old[3], wire.slow - old[4]
  end
end

-- Whether a window has seen too much, once an outcome is added: 0 is good, 1 failed, 2 was slow, 3 both.
local function trips(condition, wire, failed, slow)
  if condition.n then
    wire.failed = failed == 1 and wire.failed + 1 or 0
    return wire.failed >= condition.n
  end
  if condition.calls then
    if #wire.seen >= condition.calls then
      local oldest = tonumber(string.sub(wire.seen, 1, 1))
      wire.seen = string.sub(wire.seen, 2)
      wire.calls, wire.failed, wire.slow =
        wire.calls - 1, wire.failed - oldest % 2, wire.slow - math.floor(oldest / 2)
    end
    wire.seen = wire.seen .. (failed + 2 * slow)
  else
    age(condition, wire)
    local number = math.floor(now / condition.slice)
    local newest = wire.seen[#wire.seen]
    if not newest or newest[1] ~= number then
      newest = {number, 0, 0, 0}
      wire.seen[#wire.seen + 1] = newest
    end
    newest[2], newest[3], newest[4] = newest[2] + 1, newest[3] + failed, newest[4] + slow
  end
  wire.calls, wire.failed, wire.slow = wire.calls + 1, wire.failed + failed, wire.slow + slow
  local counted = condition.slow and wire.slow or wire.failed
  return wire.calls >= condition.min_calls and counted * condition.of >= condition.least * wire.calls
end

local function place_of(generation, number)
  if generation == c.generation then
    for place, probe in ipairs(c.probes) do
      if probe[1] == number then
        return place
      end
    end
  end
end

local function record(generation, number, failed, slow, open_for)
  if generation ~= c.generation then
    return 0
  end
  if c.state == CLOSED then
    local tripped = false
    for place, condition in ipairs(terms.trip) do
      local wire = c.wires[place]
      -- A good call changes nothing where none has failed.
      changed = changed or not condition.n or failed == 1 or wire.failed > 0
      tripped = trips(condition, wire, failed, slow) or tripped
    end
    if tripped then
      open(now, 0)
    end
  else
    local place = place_of(generation, number)
    if not place then
      return 0
    end
    table.remove(c.probes, place)
    changed = true
    if failed == 1 or slow == 1 then
      open(now, open_for)
    else
      c.successes = c.successes + 1
      if c.successes >= terms.successes then
        close()
      end
    end
  end
  if failed == 1 then
    c.failed_at = now - standing
  end
  return 1
end

local what, generation, number = ARGV[1], tonumber(ARGV[3] or nil), tonumber(ARGV[4] or nil)
local answer = 0
if what ~= 'lift' then
  tick()
end
if what == 'admit' then
  if c.state == HALF_OPEN and #c.probes < terms.probes then
    answer = c.next + 1
    c.next, changed = answer, true
    c.probes[#c.probes + 1] = {answer, now + terms.lease}
  elseif c.state ~= CLOSED then
    answer = -1
  end
elseif what == 'record' then
  answer = record(generation, number, tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
elseif what == 'release' or what == 'renew' then
  local place = place_of(generation, number)
  if place then
    changed = true
    if what == 'release' then
      table.remove(c.probes, place)
    else
      c.probes[place][2] = now + terms.lease
    end
  end
elseif what == 'isolate' then
  c.isolations, changed = c.isolations + 1, true
  if c.isolations == 1 then
    c.beneath = c.state == HALF_OPEN and OPEN or c.state
    become(ISOLATED, now)
  end
elseif what == 'lift' then
  if c.isolations > 0 then
    c.isolations, changed = c.isolations - 1, true
    if c.isolations == 0 then
      become(c.beneath, now)
    end
  end
  tick()
elseif what == 'reset' then
  c.openings, c.wires, changed = 0, fresh_wires(), true
  if c.state == ISOLATED then
    c.beneath = CLOSED
  elseif c.state == CLOSED then
    -- What is under way was admitted before and no longer counts.
    c.generation = math.max(c.generation + 1, now)
  else
    close()
  end
end

if changed then
  c.last, c.offset = now, standing
  if c.state == ISOLATED then
    -- Until it is lifted, however long nobody calls.
    redis.call('SET', KEYS[1], cmsgpack.pack(c))
  else
    local due = c.state == OPEN and lasting(c.reopen - now) or 0
    redis.call('SET', KEYS[1], cmsgpack.pack(c), 'PX', string.format('%.0f', KEPT_FOR + due))
  end
elseif c.state ~= ISOLATED and redis.call('PTTL', KEYS[1]) < KEPT_FOR / 2 then
  redis.call('PEXPIRE', KEYS[1], KEPT_FOR)
end

age(terms.trip[1], c.wires[1])
local reply = {answer, c.born, before, c.generation, c.state, c.state == OPEN and c.reopen - now or -1, c.openings,
  c.previous, c.wires[1].failed, c.failed_at, #c.probes}
for _, change in ipairs(c.log) do
  for _, part in ipairs(change) do
    reply[#reply + 1] = part
  end
end
return reply
