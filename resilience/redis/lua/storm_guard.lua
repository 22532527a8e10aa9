-- An exact sliding window, closed at both ends, and the storm over it: machines/sliding_window.py on the server's time, and
-- the shares of keys: machines/fairness.py. The newest event is the first of its list.
--
-- KEYS: the events of the window, the storm, and perhaps the events of one key
-- ARGV: take, window, limit, calm, hold, how many may fill the window, how many of one key may
--         -> 1 if admitted, 0 if the window has no room, -1 if the key has had its share; microseconds until one would be,
--            and until the storm is over (-1: there is none); this instant; 1 if a storm began;
--            1 if one had ended, how long ago, and how many it refused
--       take_back, window, the instant
--         -> 1 if the event is out again, or 0 if it was not there any more
local window = tonumber(ARGV[2])

local function nth(key, place)
  return tonumber(redis.call('LINDEX', key, place - 1) or nil)
end

if ARGV[1] == 'take_back' then
  if KEYS[3] then
    redis.call('LREM', KEYS[3], 1, ARGV[3])
  end
  return {redis.call('LREM', KEYS[1], 1, ARGV[3])}
end

local limit, calm, hold, within, quota =
  tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local kept = redis.call('HMGET', KEYS[2], 'offset', 'calm_at', 'refused', 'last')
local offset, calm_at, refused = tonumber(kept[1] or 0), tonumber(kept[2] or nil), tonumber(kept[3] or 0)
local newest = nth(KEYS[1], 1) or 0
local now, standing = line(math.max(newest, tonumber(kept[4] or 0)), offset)

-- From when on the window is calm, if nothing more comes; what comes while it is calm starts nothing anew.
local function watch(at)
  local entry = nth(KEYS[1], calm)
  if entry and at - entry <= window then
    calm_at = entry + window + 1
  end
end

local ended, ago, had_refused = 0, 0, 0
if calm_at and now >= calm_at + hold then
  ended, ago, had_refused = 1, now - calm_at - hold, refused
  calm_at = nil
end

local entry = nth(KEYS[1], within)
local full = entry and now - entry <= window
local ready = entry and entry + window + 1 or now
local share = KEYS[3] and nth(KEYS[3], quota)
local had = share and now - share <= window
if share then
  ready = math.max(ready, share + window + 1)
end

local verdict, began = 1, 0
if full then
  verdict = 0
  refused = refused + 1
  if not calm_at then
    began, refused = 1, 1
    -- Any instant in the window will do, as some bound of it is reached.
    calm_at = now
    watch(newest)
  end
elseif had then
  verdict = -1
else
  for place = 1, KEYS[3] and 3 or 1, 2 do
    redis.call('LPUSH', KEYS[place], string.format('%.0f', now))
    redis.call('LTRIM', KEYS[place], 0, (place == 1 and limit or quota) - 1)
    redis.call('PEXPIRE', KEYS[place], lasting(window))
  end
  if calm_at then
    watch(now)
  end
end

if calm_at then
  redis.call('HSET', KEYS[2], 'offset', string.format('%.0f', standing), 'calm_at', string.format('%.0f', calm_at),
    'refused', refused, 'last', string.format('%.0f', now))
  redis.call('PEXPIRE', KEYS[2], lasting(calm_at - now + hold + window))
elseif standing > 0 and (standing ~= offset or verdict == 1) then
  redis.call('HSET', KEYS[2], 'offset', string.format('%.0f', standing), 'last', string.format('%.0f', now))
  redis.call('HDEL', KEYS[2], 'calm_at', 'refused')
  redis.call('PEXPIRE', KEYS[2], lasting(window))
elseif ended == 1 then
  redis.call('DEL', KEYS[2])
end
local over = calm_at and calm_at + hold - now or -1
return {verdict, math.max(0, ready - now), over, now, began, ended, ago, had_refused}
