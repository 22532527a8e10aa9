-- A token bucket, kept as the instant at which it will be full: machines/token_bucket.py on the server's time.
-- Whole numbers below 2^53 throughout, which Lua's doubles hold exactly. A unit is 1/scale microsecond; the instant is
-- kept as whole microseconds and a part in units, as their product would be too large.
--
-- KEYS: the bucket
-- ARGV: take, scale, burst, units, the longest wait in microseconds, how much more is welcome, and in units of what
--         -> 1 if they are had (after the wait) or 0, the wait, the instant as whole and part, what is missing to full,
--            and how much more was had
--       give_back, scale, burst, units, the instant's whole and part
--         -> 1 if they came back, or 0 if somebody was admitted since
--       put_back, scale, burst, units
--         -> 1: tokens that were taken in advance are in the bucket again, as far as it has room
local scale, burst, units = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local whole, part, last, offset = 0, 0, 0, 0
local kept = redis.call('GET', KEYS[1])
if kept then
  local terms
  whole, part, terms, last, offset = string.match(kept, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  whole, part, terms, last, offset =
    tonumber(whole), tonumber(part), tonumber(terms), tonumber(last), tonumber(offset)
  if terms ~= scale then
    -- Another process has other terms, as while a new version is rolled out. The instant stays, rounded up.
    part = math.ceil(part * scale / terms)
  end
end
local now, standing = line(last, offset)
local missing = math.max(0, (whole - now) * scale + part)

local function keep()
  part = math.fmod(missing, scale)
  whole = now + (missing - part) / scale
  redis.call('SET', KEYS[1], string.format('%.0f %.0f %.0f %.0f %.0f', whole, part, scale, now, standing),
    'PX', lasting(whole - now))
end

if ARGV[1] == 'give_back' then
  if not kept or whole ~= tonumber(ARGV[5]) or part ~= tonumber(ARGV[6]) then
    return {0}
  end
  missing = math.max(0, missing - units)
  keep()
  return {1}
end

if ARGV[1] == 'put_back' then
  if missing > 0 then
    missing = math.max(0, missing - units)
    keep()
  end
  return {1}
end

local over = missing + units - burst
local wait = 0
if over > 0 then
  local rest = math.fmod(over, scale)
  wait = (over - rest) / scale
  if rest > 0 then
    wait = wait + 1
  end
end
if wait > tonumber(ARGV[5]) then
  if standing ~= offset then
    -- Kept, or time would stand still until somebody is admitted.
    keep()
  end
  return {0, wait, whole, part, missing, 0}
end
-- As of the instant at which the turn comes.
missing = math.max(missing, wait * scale) + units
local more = math.min(tonumber(ARGV[6] or 0), math.max(0, burst - missing))
if more > 0 then
  more = more - math.fmod(more, tonumber(ARGV[7]))
  missing = missing + more
end
keep()
return {1, wait, whole, part, missing, more}
